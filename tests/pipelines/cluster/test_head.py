"""A Ray head that several commands share, and what is said where there is none."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from denoise.config import load_config
from denoise.errors import UserError
from pipelines.cluster import connect

OWNER = """
import sys
from denoise.config import load_config
from pipelines.cluster.head import shared_head
with shared_head(load_config(None, ["ray.workers=2"])) as environment:
    print(environment["RAY_ADDRESS"], environment["RAY_AUTH_MODE"], flush=True)
    sys.stdin.read()
"""
MEMBER = """
from denoise.config import load_config
from pipelines.cluster.connect import ray_cluster
with ray_cluster(load_config(None)):
    import ray
    seen = ray.get_runtime_context().get_node_id(), ray.cluster_resources()["CPU"]
print(*seen)
"""


def member(address, mode):
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": mode}
    done = subprocess.run([sys.executable, "-c", MEMBER], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["normal", "kill -9"])
def test_commands_share_a_head_that_ends_with_its_owner(end):
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address, mode = owner.stdout.readline().split()
        first, second = member(address, mode), member(address, mode)
        assert first == second
        assert float(first[1]) >= 2
        processes = psutil.Process(owner.pid).children(recursive=True)
        assert any(process.name() == "raylet" for process in processes)
        if end == "normal":
            owner.communicate("", timeout=60)
        else:
            owner.send_signal(signal.SIGKILL)
        assert psutil.wait_procs(processes, timeout=60)[1] == []
    finally:
        owner.kill()
        owner.communicate()


def test_a_configured_cluster_is_the_one_that_is_shared(monkeypatch):
    from pipelines.cluster.head import shared_head

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with shared_head(load_config(None)) as environment:
        assert environment["RAY_ADDRESS"] == "10.0.0.1:6379"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "10.255.255.1:99999", "no.such.host.invalid:6379"])
def test_an_address_where_nothing_listens_is_named_at_once(monkeypatch, address):
    """Ray itself tries for a quarter of an hour, and says so in lines of its own."""
    monkeypatch.setattr(connect, "LISTENING_SECONDS", 0.1)
    monkeypatch.setattr(connect, "STARTING_SECONDS", 0.1)
    cluster = connect.ray_cluster(load_config(None, [f"ray.address={address}"]))
    with pytest.raises(UserError, match=rf"the Ray cluster at {address} cannot be reached \(.+\); check ray.address"):
        cluster.__enter__()

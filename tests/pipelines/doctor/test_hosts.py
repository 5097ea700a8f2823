"""Clusters of several hosts, with a token and without, and one that nobody else can reach."""

import json
import secrets
import subprocess
from pathlib import Path

import pytest

from tests.pipelines.cli.test_app import sentence
from tests.pipelines.hosts import BIN, Hosts, possible

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not possible(), reason="network namespaces need root and the command ip (iproute2)"),
]

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def said(hosts: Hosts, code: int, *command: str) -> tuple[str, str]:
    """Run a command on the head and return what it said."""
    process = hosts.start(1, *command, **PIPES)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out, err


def test_a_cluster_without_a_token_is_refused_and_its_check_says_so(project, denoise, tmp_path_factory):
    with Hosts(2, tmp_path_factory.mktemp("hosts"), token=False) as hosts:
        for command in (["train", "ray.workers=1"], ["tune", "tpe-asha", "data.train=small", "data.val=small"]):
            _, err = said(hosts, 1, *denoise, *command)
            assert f"the Ray cluster at {hosts.address(1)}:6399 lets in whoever reaches it" in sentence(err)
            assert "RAY_AUTH_MODE=token" in sentence(err)
        assert not list(project.glob("runs/ray/*/checkpoints/*"))
        out, _ = said(hosts, 1, *denoise, "cluster", "check", "ray.workers=1", "--json")
        found = {one["check"]: one for one in json.loads(out)}
        assert {name for name, one in found.items() if one["state"] == "problem"} == {"token"}
        assert "`ray get-auth-token --generate`" in found["token"]["says"]


def test_a_cluster_with_a_token_is_ok_on_every_host(project, denoise, tmp_path_factory):
    with Hosts(3, tmp_path_factory.mktemp("hosts")) as hosts:
        out, _ = said(hosts, 0, *denoise, "cluster", "check")
        told = {line.split()[1]: line for line in out.splitlines()}
        assert {name for name, line in told.items() if not line.startswith("ok ")} == {"mlflow"}
        assert told["mlflow"].startswith("warning")  # a file on the driver's host
        assert all(hosts.address(number) in told["hosts"] for number in (1, 2, 3))
        assert "there is room for ray.workers=2" in told["room"]


def test_a_cluster_that_only_its_machine_reaches_needs_no_token(project, denoise, tmp_path):
    """A machine without a network: Ray takes 127.0.0.1 for its own address, and listens there alone."""
    name, folder = f"alone-{secrets.token_hex(2)}", Path(f"/tmp/ray-{secrets.token_hex(2)}")
    inside = ["ip", "netns", "exec", name, "env", "RAY_AUTH_MODE=disabled", f"PATH={BIN}:/usr/sbin:/usr/bin:/sbin:/bin"]
    subprocess.run(["ip", "netns", "add", name], check=True)
    head = None
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        start = ["ray", "start", "--head", "--block", "--port=6399", "--num-cpus=1", "--include-dashboard=0"]
        with (tmp_path / "ray.log").open("wb") as log:
            head = subprocess.Popen([*inside, *start, f"--temp-dir={folder}"], stdout=log, stderr=log)
        while b"Ray runtime started" not in (tmp_path / "ray.log").read_bytes():
            assert head.poll() is None, (tmp_path / "ray.log").read_text()
        command = [*denoise, "cluster", "check", "ray.address=127.0.0.1:6399", "ray.workers=1"]
        done = subprocess.run([*inside, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "127.0.0.1:6399 asks for no token, and is reached from this machine alone" in done.stdout
    finally:
        if head is not None:
            head.terminate()
            head.wait(120)
        subprocess.run(["ip", "netns", "delete", name], check=True)

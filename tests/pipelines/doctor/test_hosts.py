"""Clusters of several hosts, with a token and without, and one that nobody else can reach."""

import json
import secrets
import subprocess
from pathlib import Path

import pytest

from tests.pipelines.cli_helpers import sentence
from tests.pipelines.hosts import BIN, Hosts, possible

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not possible(), reason="network namespaces need root and the command ip (iproute2)"),
]

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def run_on_head(hosts: Hosts, code: int, *command: str) -> tuple[str, str]:
    """Run a command on the head and return its standard output and standard error."""
    process = hosts.start(1, *command, **PIPES)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out, err


def test_a_cluster_without_a_token_is_refused_and_its_check_says_so(project, denoise, tmp_path_factory):
    with Hosts(2, tmp_path_factory.mktemp("hosts"), token=False) as hosts:
        for command in (["train", "ray.workers=1"], ["tune", "tpe-asha", "data.train=small", "data.val=small"]):
            _, err = run_on_head(hosts, 1, *denoise, *command)
            assert f"the Ray cluster at {hosts.address(1)}:6399 accepts anyone who reaches it" in sentence(err)
            assert "RAY_AUTH_MODE=token" in sentence(err)
        assert not list(project.glob("runs/ray/*/checkpoints/*"))
        out, _ = run_on_head(hosts, 1, *denoise, "cluster", "check", "ray.workers=1", "--json")
        findings = {finding["check"]: finding for finding in json.loads(out)}
        assert {name for name, finding in findings.items() if finding["state"] == "problem"} == {"token"}
        assert "`ray get-auth-token --generate`" in findings["token"]["says"]


def test_a_cluster_with_a_token_is_ok_on_every_host(project, denoise, tmp_path_factory):
    with Hosts(3, tmp_path_factory.mktemp("hosts")) as hosts:
        out, _ = run_on_head(hosts, 0, *denoise, "cluster", "check")
        lines = {line.split()[1]: line for line in out.splitlines()}
        assert {name for name, line in lines.items() if not line.startswith("ok ")} == {"mlflow"}
        assert lines["mlflow"].startswith("warning")  # a file on the driver's host
        assert all(hosts.address(number) in lines["hosts"] for number in (1, 2, 3))
        assert "there is room for ray.workers=2" in lines["room"]


def test_a_cluster_on_loopback_needs_no_token(project, denoise, tmp_path):
    """On a machine without a network Ray uses 127.0.0.1 as its own address, and listens only there."""
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
        assert "127.0.0.1:6399 requires no token, and can be reached from this machine only" in done.stdout
    finally:
        if head is not None:
            head.terminate()
            head.wait(120)
        subprocess.run(["ip", "netns", "delete", name], check=True)

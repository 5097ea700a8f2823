"""The cluster check: on a real cluster, with parameters that are fine and wrong, and each comparison by itself."""

import json

import pytest

from pipelines.cluster.auth import accepts_unauthenticated, on_loopback, requires_token
from pipelines.doctor.findings import by_host, check_capacity, compare_clocks, compare_gpus, compare_versions
from pipelines.doctor.probe import check_storage, delete_marker, versions, write_marker
from tests.pipelines.cli_helpers import sentence
from tests.pipelines.s3_helpers import s3_environment

CHECKS = ["token", "hosts", "versions", "clock", "gpus", "storage", "data", "mlflow", "sweeps", "room"]


@pytest.fixture
def check(one_host, denoise_fork):
    def run(*overrides, code=0, **environment):
        command = [*denoise_fork, "cluster", "check", *overrides]
        return one_host.run(*command, code=code, RAY_ADDRESS=one_host.address, **environment)

    return run


def test_every_check_of_a_sound_cluster_is_ok(project, check):
    lines = check("ray.workers=1").stdout.splitlines()
    assert [line.split()[1] for line in lines] == CHECKS
    assert all(line.startswith("ok ") for line in lines), lines
    assert "rejects calls without the token" in lines[0]
    assert list((project / "runs/ray").iterdir()) == []  # the test files are deleted
    assert not (project / "optuna.db").exists()


def test_problems_are_reported_without_passwords(project, check):
    wrong = ["ray.storage=params.yaml/below", "tracking.uri=http://me:secret@127.0.0.1:9", "data.train=nothing"]
    done = check("--json", *wrong, "tune.storage=postgresql://me:secret@127.0.0.1:9/sweeps", code=1)
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    problems = {name for name, finding in findings.items() if finding["state"] == "problem"}
    assert problems == {"storage", "data", "mlflow", "sweeps"}
    assert findings["room"]["state"] == "warning"  # there is one processor for two workers
    assert "params.yaml/below" in findings["storage"]["says"]
    assert "does not answer" in findings["mlflow"]["says"]
    assert findings["mlflow"]["hosts"] == findings["hosts"]["says"].partition(": ")[2].split(", ")
    assert "secret" not in done.stdout + done.stderr


def test_without_an_address_the_error_names_ray_address(project, denoise_fork, one_host):
    message = sentence(one_host.run(*denoise_fork, "cluster", "check", code=1).stderr)
    assert "ray.address=HOST:PORT" in message


def test_a_cluster_is_not_joined_without_its_token(project, check, one_host):
    message = sentence(check(code=1, RAY_AUTH_TOKEN_PATH="nowhere").stderr)
    assert "put its token in ~/.ray/auth_token" in message
    assert requires_token(one_host.address)
    assert not accepts_unauthenticated(one_host.address)
    assert not requires_token("127.0.0.1:9")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:6379", True),
        ("[::1]:6379", True),
        ("localhost:8265", True),
        ("localhost", True),
        ("10.0.0.1:6379", False),
        ("0.0.0.0:6379", False),
        ("nowhere.invalid:6379", False),
    ],
)
def test_only_addresses_of_this_machine_are_on_loopback(address, expected):
    assert on_loopback(address) is expected


def test_a_folder_that_is_not_shared_is_an_error(tmp_path):
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    assert write_marker(here, "marker") is None
    assert check_storage(here, "marker") is None
    assert "another folder there than on the driver's host" in check_storage(there, "marker")
    delete_marker(here, "marker")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_bucket_is_written_to_read_and_left_empty(s3, monkeypatch):
    with s3_environment(monkeypatch, s3.port):
        assert check_storage("s3://bucket/runs") is None
        assert "no such bucket" in check_storage("s3://other/runs")
    assert s3.client().list_objects_v2(Bucket="bucket")["KeyCount"] == 0
    assert "s3://BUCKET/PREFIX" in check_storage("http://127.0.0.1:9")


def test_differing_versions_are_reported_by_host():
    here = versions()
    assert here["ray"]
    (finding,) = compare_versions({"a": here}, here)
    assert finding.state == "ok"
    (silent,) = compare_versions({"a": here, "b": {**here, "torch": "2.0.0"}, "c": "no answer"}, here)[:1]
    assert (silent.state, silent.hosts) == ("problem", ("c",))
    different = compare_versions({"b": {**here, "torch": "2.0.0"}}, here)[0]
    assert f"b: torch 2.0.0 (here {here['torch']})" in different.says


def test_clocks_are_compared_with_their_uncertainty():
    assert compare_clocks({"a": (0.2, 0.01), "b": (-0.9, 0.3)})[0].state == "ok"
    assert compare_clocks({"a": (1.5, 0.6)})[0].state == "ok"  # the offset may be the network's
    ahead, behind = compare_clocks({"a": (3.04, 0.01), "b": (-7.0, 0.01)})
    assert "a: the clock is 3.0 s ahead of this machine's" in ahead.says
    assert "b: the clock is 7.0 s behind this machine's" in behind.says


def test_gpus_missing_in_torch_are_a_problem_and_gpus_unused_by_ray_a_warning():
    assert compare_gpus({"a": 0}, {"a": 0})[0].state == "ok"
    assert compare_gpus({"a": 2, "b": 2}, {"a": 2, "b": 2})[0].says == "torch sees the 4 GPUs that Ray offers"
    missing, unused = compare_gpus({"a": 0, "b": 2}, {"a": 1, "b": 0})
    assert (missing.state, missing.hosts, unused.state, unused.hosts) == ("problem", ("a",), "warning", ("b",))


def test_hosts_with_the_same_error_share_a_finding():
    (first, second) = by_host("data", "", {"a": "x", "b": "y", "c": "x"})
    assert (first.says, second.says) == ("a, c: x", "b: y")


def test_less_room_than_wanted_is_a_warning():
    assert [check_capacity(capacity, 4, 2).state for capacity in (4, 2, 1)] == ["ok", "warning", "warning"]
    assert "a run uses only those" in check_capacity(2, 4, 2).says
    assert "would wait" in check_capacity(1, 4, 2).says

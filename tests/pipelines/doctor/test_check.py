"""What is said of a cluster: a real one that is sound, one where much is wrong, and each judgement by itself."""

import json

import pytest

from pipelines.cluster.auth import accepts_unauthenticated, on_loopback, wants_a_token
from pipelines.doctor.findings import by_host, compare_clocks, compare_gpus, compare_versions, judge_room
from pipelines.doctor.probe import clear, leave, round_trip, versions
from tests.pipelines.cli.test_app import sentence
from tests.pipelines.s3_helpers import s3_environment

CHECKS = ["token", "hosts", "versions", "clock", "gpus", "storage", "data", "mlflow", "sweeps", "room"]


@pytest.fixture
def check(one_host, denoise):
    def run(*overrides, code=0, **environment):
        command = [*denoise, "cluster", "check", *overrides]
        return one_host.run(*command, code=code, RAY_ADDRESS=one_host.address, **environment)

    return run


def test_a_sound_cluster_is_ok(project, check):
    told = check("ray.workers=1").stdout.splitlines()
    assert [line.split()[1] for line in told] == CHECKS
    assert all(line.startswith("ok ") for line in told), told
    assert "answers nobody without the token" in told[0]
    assert list((project / "runs/ray").iterdir()) == []  # what was written to see whether it can be is gone
    assert not (project / "optuna.db").exists()


def test_what_is_wrong_is_said_without_passwords(project, check):
    wrong = ["ray.storage=params.yaml/below", "tracking.uri=http://me:secret@127.0.0.1:9", "data.train=nothing"]
    done = check("--json", *wrong, "tune.storage=postgresql://me:secret@127.0.0.1:9/sweeps", code=1)
    found = {one["check"]: one for one in json.loads(done.stdout)}
    problems = {name for name, one in found.items() if one["state"] == "problem"}
    assert problems == {"storage", "data", "mlflow", "sweeps"}
    assert found["room"]["state"] == "warning"  # there is one processor for two workers
    assert "params.yaml/below" in found["storage"]["says"]
    assert "does not answer" in found["mlflow"]["says"]
    assert found["mlflow"]["hosts"] == found["hosts"]["says"].partition(": ")[2].split(", ")
    assert "secret" not in done.stdout + done.stderr


def test_a_cluster_has_to_be_named(project, denoise, one_host):
    told = sentence(one_host.run(*denoise, "cluster", "check", code=1).stderr)
    assert "ray.address=HOST:PORT" in told


def test_a_cluster_is_not_joined_without_its_token(project, check, one_host):
    told = sentence(check(code=1, RAY_AUTH_TOKEN_PATH="nowhere").stderr)
    assert "put its token in ~/.ray/auth_token" in told
    assert wants_a_token(one_host.address)
    assert not accepts_unauthenticated(one_host.address)
    assert not wants_a_token("127.0.0.1:9")


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
def test_an_address_is_on_loopback(address, expected):
    assert on_loopback(address) is expected


def test_a_folder_that_is_not_shared_is_told(tmp_path):
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    assert leave(here, "mark") is None
    assert round_trip(here, "mark") is None
    assert "folder of that host's own" in round_trip(there, "mark")
    clear(here, "mark")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_bucket_is_written_read_and_left_empty(s3, monkeypatch):
    with s3_environment(monkeypatch, s3.port):
        assert round_trip("s3://bucket/runs") is None
        assert "no such bucket" in round_trip("s3://other/runs")
    assert s3.client().list_objects_v2(Bucket="bucket")["KeyCount"] == 0
    assert "s3://BUCKET/PREFIX" in round_trip("http://127.0.0.1:9")


def test_versions_that_differ_are_told_by_host():
    mine = versions()
    assert mine["ray"]
    (fine,) = compare_versions({"a": mine}, mine)
    assert fine.state == "ok"
    (bad,) = compare_versions({"a": mine, "b": {**mine, "torch": "2.0.0"}, "c": "no answer"}, mine)[:1]
    assert (bad.state, bad.hosts) == ("problem", ("c",))
    other = compare_versions({"b": {**mine, "torch": "2.0.0"}}, mine)[0]
    assert f"b: torch 2.0.0 (here {mine['torch']})" in other.says


def test_clocks_are_judged_with_their_uncertainty():
    assert compare_clocks({"a": (0.2, 0.01), "b": (-0.9, 0.3)})[0].state == "ok"
    assert compare_clocks({"a": (1.5, 0.6)})[0].state == "ok"  # it may be the network
    ahead, behind = compare_clocks({"a": (3.04, 0.01), "b": (-7.0, 0.01)})
    assert "a: the clock is 3.0 s ahead of this machine's" in ahead.says
    assert "b: the clock is 7.0 s behind this machine's" in behind.says


def test_gpus_that_torch_does_not_see_are_a_problem_and_those_that_ray_does_not_give_a_warning():
    assert compare_gpus({"a": 0}, {"a": 0})[0].state == "ok"
    assert compare_gpus({"a": 2, "b": 2}, {"a": 2, "b": 2})[0].says == "torch sees the 4 GPUs that Ray gives away"
    short, idle = compare_gpus({"a": 0, "b": 2}, {"a": 1, "b": 0})
    assert (short.state, short.hosts, idle.state, idle.hosts) == ("problem", ("a",), "warning", ("b",))


def test_hosts_with_the_same_trouble_share_a_sentence():
    (one, other) = by_host("data", "", {"a": "x", "b": "y", "c": "x"})
    assert (one.says, other.says) == ("a, c: x", "b: y")


def test_room_for_the_least_number_of_workers_will_do():
    assert [judge_room(found, 4, 2).state for found in (4, 2, 1)] == ["ok", "warning", "warning"]
    assert "goes on with those" in judge_room(2, 4, 2).says
    assert "would wait" in judge_room(1, 4, 2).says

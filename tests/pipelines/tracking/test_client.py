"""Access to MLflow, and runs that are found, created, owned and closed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import denoise
from denoise.errors import UserError
from pipelines.tracking import client as tracking
from pipelines.tracking.owner import has_died, this_host, this_process
from pipelines.tracking.runs import OWNER_TAG, DataUse, RunSpec, get_or_create_run
from tests.pipelines.mlflow_helpers import shared_uri

PROJECT = Path(denoise.__file__).parents[1]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def test_a_sqlite_uri_becomes_absolute_and_a_server_stays(tmp_path):
    assert tracking.resolve_uri("sqlite:///mlflow.db", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.resolve_uri("sqlite:////data/mlflow.db", tmp_path) == "sqlite:////data/mlflow.db"
    assert tracking.resolve_uri("http://mlflow:5000/", tmp_path) == "http://mlflow:5000"
    postgres = "postgresql+psycopg2://me:secret@host/db"
    assert tracking.resolve_uri(postgres, tmp_path) == postgres


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "", "sqlite:///", "sqlite://", "databricks"])
def test_anything_but_a_database_or_a_server_is_refused(uri, tmp_path):
    with pytest.raises(UserError, match=r"sqlite:///mlflow\.db"):
        tracking.resolve_uri(uri, tmp_path)


def test_a_run_is_found_again_and_keeps_its_first_values(uri):
    digest = "0123456789abcdef" * 4
    first = {
        "tags": {"method": "n2n", "mlflow.source.git.commit": "abc"},
        "params": {"train.steps": 10, "data.train": ("a", "b"), "long": "x" * 7000},
        "datasets": (DataUse("samples", "train", digest, "data/shards/samples"),),
    }
    run_id = get_or_create_run(RunSpec(uri, "again", "n2n", **first))
    tracking.finish_run(uri, run_id, "FAILED")
    later = first | {"tags": {"method": "other", "new": 1}, "params": {"train.steps": 20, "late": None}}
    assert get_or_create_run(RunSpec(uri, "again", "n2n", **later)) == run_id

    run = tracking.client(uri).get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "n2n"
    assert run.data.params["train.steps"] == "10"
    assert run.data.params["data.train"] == "a,b"
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["late"] == "None"
    assert run.data.tags["method"] == "n2n"
    assert run.data.tags["new"] == "1"
    assert run.data.tags["denoise.changed_params"] == '{"train.steps": ["10", "20"]}'
    assert run.data.tags["denoise.data.train.samples"] == digest
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("samples", digest[:36])
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "train"}
    assert run.info.artifact_uri.startswith(tracking.artifact_root(uri).as_uri())


def test_another_name_or_experiment_is_another_run(uri):
    runs = [("one", "n2n"), ("one", "n2c"), ("two", "n2n"), ("one", "it's"), ("one", "n2n")]
    ids = [get_or_create_run(RunSpec(uri, experiment, name)) for experiment, name in runs]
    assert len(set(ids)) == 4
    assert ids[0] == ids[4]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_with_its_status(uri, status):
    run_id = get_or_create_run(RunSpec(uri, "ends", status))
    tracking.finish_run(uri, run_id, status)
    info = tracking.client(uri).get_run(run_id).info
    assert info.status == status
    assert info.end_time >= info.start_time


def test_a_repeated_request_creates_one_run(uri, monkeypatch):
    from mlflow import MlflowClient

    create = MlflowClient.create_run

    def twice(self, *args, **kwargs):  # the answer to the first request got lost
        create(self, *args, **kwargs)
        return create(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    run_id = get_or_create_run(RunSpec(uri, "duplicates", "n2n"))
    api = tracking.client(uri)
    experiment = api.get_experiment_by_name("duplicates")
    assert [run.info.run_id for run in api.search_runs([experiment.experiment_id])] == [run_id]


def test_a_deleted_experiment_is_an_error(uri):
    run_id = get_or_create_run(RunSpec(uri, "deleted", "n2n"))
    api = tracking.client(uri)
    api.delete_experiment(api.get_run(run_id).info.experiment_id)
    with pytest.raises(UserError, match="experiment deleted has been deleted"):
        get_or_create_run(RunSpec(uri, "deleted", "n2n"))


def test_a_server_that_does_not_answer_is_an_error_without_the_password():
    with pytest.raises(UserError, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:9 does not answer"):
        get_or_create_run(RunSpec("http://me:secret@127.0.0.1:9", "any", "n2n"))


def test_a_file_that_is_no_database_is_an_error(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database at all, but more than a hundred bytes" * 9)
    with pytest.raises(UserError, match=r"MLflow cannot open sqlite:///.*mlflow\.db"):
        tracking.client(tracking.resolve_uri("sqlite:///mlflow.db", tmp_path))


CREATE_AT_ONCE = """
import os, sys
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store  # the slow imports, once
import sqlalchemy
from pipelines.tracking import client as tracking
from pipelines.tracking.runs import RunSpec, get_or_create_run

if os.fork() == 0:  # ends, as by a kill, when the first table is there
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", lambda *_: os._exit(9))
    tracking.client(sys.argv[1])
assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
ready, go = os.pipe()
for number in range(16):
    if os.fork() == 0:
        os.close(go)
        os.read(ready, 1)  # returns for all of them at once, when the parent closes its end
        run_id = get_or_create_run(RunSpec(sys.argv[1], "first", f"run{number % 8}", params={"a": number % 8}))
        print(run_id, flush=True)
        os._exit(0)
os.close(go)
sys.exit(sum(os.wait()[1] != 0 for _ in range(16)))
"""


def test_sixteen_processes_create_the_database_at_once_after_one_that_was_killed(tmp_path):
    uri = tracking.resolve_uri("sqlite:///new folder/mlflow.db", tmp_path)
    done = subprocess.run([sys.executable, "-c", CREATE_AT_ONCE, uri], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = done.stdout.split()
    assert len(ids) == 16
    assert len(set(ids)) == 8  # two launches of each of eight runs
    assert sorted(path.name for path in (tmp_path / "new folder").iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_run_spec_is_plain_data():
    params = {"train.steps": 10, "data.train": ("a", "b"), "late": None, "long": "x" * 7000}
    spec = RunSpec("sqlite:////m.db", "e", "n", {"a": 1}, params, (DataUse("s", "train", "d", "p"),), "h 1 2.0", 5)
    assert pickle.loads(pickle.dumps(spec)) == spec
    tree = json.loads(json.dumps(spec.as_dict()))
    assert tree["params"]["data.train"] == "a,b"
    assert tree["driver"] == "h 1 2.0"  # the key of journals that already exist
    again = RunSpec.from_dict(tree)
    assert again.as_dict() == tree
    assert (again.datasets, again.owner, again.started) == (spec.datasets, "h 1 2.0", 5)


OWNER = """
import sys, time
from pipelines.tracking.runs import RunSpec, get_or_create_run
print(get_or_create_run(RunSpec(sys.argv[1], "abandoned", sys.argv[2])), flush=True)
time.sleep(600)
"""


def start_owner(uri: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OWNER, uri, name]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def test_a_run_whose_owner_was_killed_is_closed_by_the_next_run(uri):
    api = tracking.client(uri)
    killed, living = start_owner(uri, "killed"), start_owner(uri, "living")
    try:
        ids = {"killed": killed.stdout.readline().strip(), "living": living.stdout.readline().strip()}
        ids["elsewhere"] = get_or_create_run(RunSpec(uri, "abandoned", "elsewhere"))
        api.set_tag(ids["elsewhere"], OWNER_TAG, f"other-host {killed.pid} {time.time():.2f}")
        ids["no owner"] = get_or_create_run(RunSpec(uri, "abandoned", "no owner"))
        api.delete_tag(ids["no owner"], OWNER_TAG)
        os.kill(killed.pid, signal.SIGKILL)
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # dead, but still in the table of processes
        get_or_create_run(RunSpec(uri, "abandoned", "writer"), as_owner=False)
        assert api.get_run(ids["killed"]).info.status == "RUNNING"
        get_or_create_run(RunSpec(uri, "abandoned", "next"))
        statuses = {name: api.get_run(run_id).info.status for name, run_id in ids.items()}
        assert statuses == {"killed": "KILLED", "living": "RUNNING", "elsewhere": "RUNNING", "no owner": "RUNNING"}

        assert get_or_create_run(RunSpec(uri, "abandoned", "killed")) == ids["killed"]  # resumed, by this process
        run = api.get_run(ids["killed"])
        assert run.data.tags[OWNER_TAG] == this_process()
        get_or_create_run(RunSpec(uri, "abandoned", "next"))
        assert api.get_run(ids["killed"]).info.status == "RUNNING"
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()
            process.stdout.close()


def test_only_a_process_of_this_host_is_known_to_have_died():
    host, pid, created = this_process().split()
    assert not has_died(this_process())
    assert has_died(f"{host} {pid} {float(created) - 1000}")  # its process id was reused
    epoch = psutil.Process().create_time()  # as 0.1.0 wrote it
    assert not has_died(f"{host} {pid} {epoch:.2f}")
    assert has_died(f"{host} {pid} {epoch - 1000:.2f}")
    assert has_died(f"{this_host()} 4194305 {created}")  # above the largest process id of Linux
    assert not has_died(f"{host}-x 4194305 {created}")
    assert not any(has_died(text) for text in ("", "nobody", f"{host} one two"))


def test_a_clock_that_is_set_does_not_make_a_living_process_a_dead_one(monkeypatch):
    owner, boot = this_process(), psutil.boot_time()
    for jump in (-86400, 86400):
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda jump=jump: boot + jump)  # what /proc/stat says then
        assert psutil.Process().create_time() != pytest.approx(float(owner.split()[2]), abs=3600)
        assert this_process() == owner
        assert not has_died(owner)


def test_rank_0_does_not_take_a_run_from_its_owner(uri):
    owner = f"far-away 12 {time.time():.2f}"
    run_id = get_or_create_run(RunSpec(uri, "owners", "n2n", owner=owner), as_owner=False)
    assert tracking.client(uri).get_run(run_id).data.tags[OWNER_TAG] == owner
    assert get_or_create_run(RunSpec(uri, "owners", "n2n"), as_owner=False) == run_id
    assert tracking.client(uri).get_run(run_id).data.tags[OWNER_TAG] == owner

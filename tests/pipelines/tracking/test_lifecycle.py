"""Begin, end and sync of runs, with MLflow there, away, or back later."""

import json
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

import denoise
from denoise.errors import UserError
from pipelines.tracking import client as tracking
from pipelines.tracking.journal import Journal
from pipelines.tracking.lifecycle import (
    MissingData,
    begin,
    find_journals,
    find_missing,
    finish,
    journal_folder,
    sync,
    tracked_run,
)
from pipelines.tracking.logger import MlflowLogger
from pipelines.tracking.owner import this_process
from pipelines.tracking.runs import OWNER_TAG, RunSpec, get_or_create_run
from tests.pipelines.mlflow_helpers import free_port, history, images, make_model, runs_named, shared_uri

PROJECT = Path(denoise.__file__).parents[1]
IMAGE = np.zeros((4, 6, 3), np.uint8)
EXAMPLE = np.zeros((1, 3, 40, 40), np.float32)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def train(spec: RunSpec, folder: Path, steps: range) -> None:
    """Log what a short training run would."""
    log = MlflowLogger(spec, folder, system_metrics=False)
    for step in steps:
        log.log_metrics(step, {"loss": step, "lr": 0.1})
        if step % 5 == 0:
            log.log_image("validation", IMAGE, step)
        log.flush()
    log.close()


@pytest.fixture
def denoise_runs(denoise_fork, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*denoise_fork, "runs", *arguments], cwd=tmp_path, capture_output=True, text=True)

    return run


def everything(uri: str, run_id: str) -> tuple[object, ...]:
    """Return all that a second sync must not change."""
    run = tracking.client(uri).get_run(run_id)
    outputs = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    histories = {key: history(uri, run_id, key) for key in run.data.metrics}
    return dict(run.info), run.data.tags, run.data.params, histories, images(uri, run_id), outputs


def test_a_run_without_mlflow_from_start_to_end_is_sent_by_sync(uri, server, denoise_runs, tmp_path, capfd):
    folder = journal_folder(str(tmp_path / "runs/ray"), "offline")
    params, tags = {"train.steps": 12}, {"method": "n2n"}
    spec = begin(RunSpec(server.address, "syncs over http", "offline", tags, params), folder)
    train(spec, folder, range(12))
    Journal(folder).set_model(make_model(tmp_path / "model", "gauss25"), {"loss": 11.0}, EXAMPLE)
    assert not finish(folder, "FINISHED")
    warnings = capfd.readouterr().err
    assert "run offline goes on without it" in warnings
    assert warnings.count("`denoise runs sync offline` sends") == 2  # at the end of the log, and of the run
    refused = denoise_runs("sync")
    assert refused.returncode == 1
    assert "error: offline is not synced: MLflow at http://127.0.0.1" in refused.stderr
    (row,) = json.loads(denoise_runs("list", "--json").stdout)
    assert (row["name"], row["steps"], row["status"], row["missing"]) == ("offline", 11, "FINISHED", None)
    assert "not compared: MLflow at" in denoise_runs("list").stdout

    server.start()
    assert find_missing(folder) == MissingData(24, 3, model=True, status=True)
    done = denoise_runs("sync", "--json")
    assert done.returncode == 0, done.stderr
    (run_id,) = runs_named(uri, "syncs over http", "offline")
    sent = {"name": "offline", "run_id": run_id, "metrics": 24, "images": 3, "status": "FINISHED"}
    assert json.loads(done.stdout) == [sent]
    run = tracking.client(uri).get_run(run_id)
    assert (run.info.status, run.data.params["train.steps"], run.data.tags["method"]) == ("FINISHED", "12", "n2n")
    assert run.info.start_time == spec.started
    assert run.info.start_time < run.info.end_time == Journal(folder).final_status().time
    assert history(uri, run_id, "loss") == [(step, float(step)) for step in range(12)]
    assert images(server.address, run_id) == [f"validation-step-{step:06d}.png" for step in (0, 5, 10)]
    assert len(run.outputs.model_outputs) == 1

    before = everything(server.address, run_id)
    assert sync(folder)[2:] == (0, 0, "FINISHED")
    again = denoise_runs("sync", "offline")
    assert again.stdout == "offline  FINISHED  sent 0 metrics and 0 images\n"
    assert everything(server.address, run_id) == before
    assert "MLflow lacks nothing" in denoise_runs("list").stdout


def test_mlflow_lacks_nothing_of_a_run_that_it_followed(uri, tmp_path, capfd):
    spec = begin(RunSpec(uri, "syncs", "followed"), tmp_path)
    train(spec, tmp_path, range(6))
    Journal(tmp_path).set_model(make_model(tmp_path / "model of this", "gauss25"), {"loss": 1.0}, EXAMPLE)
    assert finish(tmp_path, "FINISHED")
    assert find_missing(tmp_path) == MissingData(0, 0, model=False, status=False)
    run = tracking.client(uri).get_run(*runs_named(uri, "syncs", "followed"))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["model/loss"] == 1.0
    assert sync(tmp_path) == ("followed", run.info.run_id, 0, 0, "FINISHED")
    assert capfd.readouterr().err == ""


def test_two_attempts_are_one_run_although_mlflow_answered_only_the_second(uri, tmp_path):
    away = RunSpec(f"http://127.0.0.1:{free_port()}", "syncs", "twice", params={"a": 1})
    train(begin(away, tmp_path), tmp_path, range(8))
    finish(tmp_path, "FAILED")
    second = begin(replace(away, uri=uri), tmp_path)
    assert Journal(tmp_path).final_status() is None
    train(second, tmp_path, range(5, 15))
    assert finish(tmp_path, "FINISHED")
    (run_id,) = runs_named(uri, "syncs", "twice")
    assert history(uri, run_id, "loss") == [(step, float(step)) for step in range(15)]
    assert tracking.client(uri).get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_ends_as_its_block_does(uri, tmp_path, error, status):
    def block() -> None:
        with tracked_run(RunSpec(uri, "ends of blocks", status), tmp_path) as run:
            assert run.spec.owner == this_process()
            if error:
                raise error

    if error:
        with pytest.raises(error):
            block()
    else:
        block()
    run = tracking.client(uri).get_run(*runs_named(uri, "ends of blocks", status))
    assert run.info.status == status == Journal(tmp_path).final_status().status


OWNER = """
import sys, time
from pathlib import Path
from pipelines.tracking.logger import MlflowLogger
from pipelines.tracking.runs import RunSpec
from pipelines.tracking.lifecycle import tracked_run
with tracked_run(RunSpec(*sys.argv[1:4]), Path(sys.argv[4])) as run:
    log = MlflowLogger(run.spec, Path(sys.argv[4]), system_metrics=False)
    log.log_metrics(0, {"loss": 1.0})
    print(log.flush(60), flush=True)
    time.sleep(600)
"""


def experiment_of(uri: str) -> str:
    return "signals over http" if uri.startswith("http") else "signals"  # a server keeps files in its own way


def exit_code_after(sign: signal.Signals, uri: str, name: str, folder: Path) -> int:
    """Start a process that owns a run, send it a signal once it has logged, and return its exit code."""
    command = [sys.executable, "-c", OWNER, uri, experiment_of(uri), name, str(folder)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as owner:
        owner.stdout.readline()
        owner.send_signal(sign)
        return owner.wait(120)


def test_a_run_ended_by_sigterm_is_killed(uri, tmp_path):
    assert exit_code_after(signal.SIGTERM, uri, "terminated", tmp_path) == 143
    run = tracking.client(uri).get_run(*runs_named(uri, "signals", "terminated"))
    assert run.info.status == "KILLED" == Journal(tmp_path).final_status().status


def test_a_run_ended_by_sigkill_is_killed_when_another_run_begins(uri, tmp_path):
    assert exit_code_after(signal.SIGKILL, uri, "shot", tmp_path / "shot") == -signal.SIGKILL
    run_id = runs_named(uri, "signals", "shot")[0]
    assert tracking.client(uri).get_run(run_id).info.status == "RUNNING"
    begin(RunSpec(uri, "signals", "next"), tmp_path / "next")
    assert tracking.client(uri).get_run(run_id).info.status == "KILLED"


def test_a_run_ended_by_sigkill_during_an_outage_is_killed_by_sync(uri, server, tmp_path):
    assert exit_code_after(signal.SIGKILL, server.address, "shot offline", tmp_path) == -signal.SIGKILL
    server.start()
    assert sync(tmp_path)[2:] == (1, 0, "KILLED")
    info = tracking.client(uri).get_run(*runs_named(uri, "signals over http", "shot offline")).info
    assert info.start_time <= info.end_time
    assert sync(tmp_path)[2:] == (0, 0, "KILLED")


def test_a_run_created_late_in_mlflow_has_its_owner(uri, tmp_path):
    """Otherwise no process could close it after a kill."""
    away = f"http://127.0.0.1:{free_port()}"
    spec = begin(RunSpec(away, "signals", "late"), tmp_path)
    MlflowLogger(replace(spec, uri=uri), tmp_path, system_metrics=False).close()
    run = tracking.client(uri).get_run(*runs_named(uri, "signals", "late"))
    assert run.data.tags[OWNER_TAG] == this_process()
    assert sync(tmp_path).status == "RUNNING"  # this process still owns it


def test_a_permanent_refusal_of_mlflow_is_an_error_at_the_start(uri, tmp_path):
    run_id = get_or_create_run(RunSpec(uri, "deleted for sync", "n2n"))
    api = tracking.client(uri)
    api.delete_experiment(api.get_run(run_id).info.experiment_id)
    with pytest.raises(UserError, match="experiment deleted for sync has been deleted"):
        begin(RunSpec(uri, "deleted for sync", "n2n"), tmp_path)


@pytest.mark.parametrize(("code", "fatal"), [(503, False), (404, True)])
def test_a_server_error_is_temporary_and_a_client_error_is_fatal(tmp_path, code, fatal):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(code)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        spec = RunSpec(f"http://127.0.0.1:{answering.server_port}", "any", "n2n")
        with pytest.raises(UserError, match="does not answer") if fatal else nullcontext():
            begin(spec, tmp_path)
        answering.shutdown()


def test_journals_are_found_by_name(tmp_path):
    for name in ("b", "a"):
        Journal(journal_folder(str(tmp_path), name)).start_attempt(RunSpec("sqlite:////m.db", "e", name))
    (tmp_path / "no run").mkdir()
    assert list(find_journals(str(tmp_path))) == ["a", "b"]
    assert find_journals(str(tmp_path), ["b"]) == {"b": tmp_path / "b" / "journal"}
    with pytest.raises(UserError, match="there is no journal of c in .*; `denoise runs list` lists them"):
        find_journals(str(tmp_path), ["c"])
    assert find_journals(str(tmp_path / "nothing")) == {}


def test_the_journal_of_a_run_on_s3_is_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = journal_folder("s3://bucket/runs", "a")
    assert folder == tmp_path / "runs" / "a" / "journal"
    Journal(folder).start_attempt(RunSpec("sqlite:////m.db", "e", "a"))
    assert find_journals("s3://bucket/runs") == {"a": folder}

"""Sweeps on a real Ray, Optuna and MLflow."""

import csv
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from denoise.denoiser import load_denoiser
from pipelines.tuning.results import STATE_TAG
from pipelines.tuning.study import REASON
from tests.pipelines.conftest import ROOT
from tests.pipelines.mlflow_helpers import Server
from tests.pipelines.processes import left_behind
from tests.pipelines.training.test_on_ray import wait_for

BASE = {"net": "cnn5", "ray": {"workers": 1}, "train": {"crop": 32, "batch_size": 2}}
GOOD, IDLE, WILD = 1e-3, 1e-9, 1e30  # learning rates: learns, learns nothing, diverges


@pytest.fixture
def sweep(project):
    """Write a sweep to a file, and return its name."""

    def write(**fields):
        tree = {"title": "a test", "config": BASE, "images": 48, "evaluations": 4, **fields}
        (project / "mine.yaml").write_text(yaml.safe_dump(tree))
        return "mine.yaml"

    return write


def trials_of(name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{Path('optuna.db').absolute()}").trials


def mlflow_client():
    return MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")  # MLflow keeps connections by their address


def runs_of(name):
    """Return the MLflow run of the sweep, and those of its trials by number."""
    client = mlflow_client()
    runs = client.search_runs([client.get_experiment_by_name("denoise").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == name]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == len(children) + 1
    return parent, sorted(children, key=lambda run: int(run.data.tags["denoise.trial"]))


def ends_of(children):
    return {float(run.data.params["train.lr"]): (run.info.status, run.data.tags[STATE_TAG]) for run in children}


def tuned(denoise, *arguments, timeout=500):
    done = subprocess.run([*denoise, "tune", *arguments, "--json"], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_the_last_lines(printed, call, project):
    """Run the three commands that a sweep prints last, in its folder, exactly as they are printed."""
    assert "sweep.html" not in printed  # one complete trial alone is not plotted
    assert (project / "sweeps" / "two" / "trials.csv").is_file()
    assert "sweeps/two/trials.csv shows them" in printed
    lines = printed.strip().splitlines()[-3:]
    for line in lines:
        assert line.lstrip().startswith("denoise ")
        call("sh", "-ec", line, cwd=project)
    client = mlflow_client()
    champion, challenger = (
        client.get_model_version_by_alias("denoise-gauss25", alias) for alias in ("champion", "challenger")
    )
    assert champion.version == challenger.version
    assert champion.tags["data"] == "own"


def test_a_sweep_ends_with_a_registered_challenger_and_what_makes_it_the_champion(
    project, denoise_fork, sweep, one_host, monkeypatch, call, photographs
):
    """One trial learns, one diverges: Optuna, MLflow and the table agree, and the model can be loaded."""
    for name, value in one_host.variables.items():
        monkeypatch.setenv(name, value)
    (project / "own").mkdir()
    shutil.copy(photographs / "astronaut.png", project / "own")
    call("denoise", "shard", "own", "--from", "own", "--split", "test", cwd=project)
    file = sweep(space={"train.lr": {"choice": [GOOD, WILD]}}, trials=2, sampler="grid", images=800)
    options = [file, "data.test=own", "--name=two"]
    run_the_last_lines(call("denoise", "tune", *options, cwd=project), call, project)
    summary = tuned(denoise_fork, *options)
    assert summary["trials"] == {"COMPLETE": 1, "PRUNED": 0, "FAIL": 1}
    assert summary["best"]["train.lr"] == GOOD
    assert left_behind() == []

    states = {trial.params["train.lr"]: trial for trial in trials_of("two")}
    assert [states[lr].state.name for lr in (GOOD, WILD)] == ["COMPLETE", "FAIL"]
    assert "the loss is" in states[WILD].user_attrs[REASON]
    assert list(states[GOOD].intermediate_values) == [1, 2, 3, 4]

    parent, children = runs_of("two")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best.val_psnr"] == summary["best"]["val_psnr"]
    assert ends_of(children) == {GOOD: ("FINISHED", "COMPLETE"), WILD: ("FAILED", "FAIL")}
    client = mlflow_client()
    artifacts = {Path(entry.path).name for entry in client.list_artifacts(parent.info.run_id, "sweep")}
    assert {"trials.csv", "summary.json"} <= artifacts
    rows = list(csv.DictReader((project / "sweeps" / "two" / "trials.csv").open()))
    assert [row["state"] for row in rows] == [trial.state.name for trial in trials_of("two")]

    assert summary["version"] == "1"
    assert load_denoiser(Path(summary["model"])).name == "n2n"

    sweeps = subprocess.run([*denoise_fork, "sweeps", "list", "--json"], capture_output=True, text=True, timeout=100)
    (row,) = json.loads(sweeps.stdout)
    assert (row["name"], row["trials"], row["best"]) == (
        "two",
        {"COMPLETE": 1, "FAIL": 1} if rows[0]["state"] == "COMPLETE" else {"FAIL": 1, "COMPLETE": 1},
        summary["best"]["val_psnr"],
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pruned_trial_is_pruned_in_optuna_and_mlflow_and_a_finished_sweep_is_not_searched_again(
    project, denoise, sweep
):
    space = {"train.lr": {"choice": [GOOD, IDLE]}}
    file = sweep(space=space, trials=2, sampler="grid", pruner="asha", reduction=2, images=800)
    options = [file, "--name=pruned", "--concurrency=1", "--seed=1"]
    summary = tuned(denoise, *options)
    assert summary["trials"] == {"COMPLETE": 1, "PRUNED": 1, "FAIL": 0}
    states = {trial.params["train.lr"]: trial for trial in trials_of("pruned")}
    assert [states[lr].state.name for lr in (GOOD, IDLE)] == ["COMPLETE", "PRUNED"]
    assert len(states[IDLE].intermediate_values) < len(states[GOOD].intermediate_values)
    assert ends_of(runs_of("pruned")[1]) == {GOOD: ("FINISHED", "COMPLETE"), IDLE: ("KILLED", "PRUNED")}
    assert left_behind() == []

    assert tuned(denoise, *options)["best"] == summary["best"]  # not searched again
    assert len(trials_of("pruned")) == 2


ACTORS = """
import ray
from ray.util.state import list_actors
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print(len(list_actors(filters=[("class_name", "=", "MessagesActor")], limit=1000)))
"""


def actors_of_messages(host):
    """Return how many actors for messages a cluster has had."""
    return int(host.run(sys.executable, "-c", ACTORS, **host.variables).stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_of_two_workers_each_are_pruned_alike_and_share_one_actor_for_messages(
    project, denoise, sweep, one_host, monkeypatch
):
    for name, value in one_host.variables.items():
        monkeypatch.setenv(name, value)
    space = {"train.lr": {"choice": [GOOD, IDLE]}}
    file = sweep(space=space, trials=2, sampler="grid", pruner="asha", reduction=2, images=800)
    options = ["--name=pairs", "--concurrency=1", "--seed=1", "ray.workers=2", "ray.cpus_per_worker=0.5"]
    before = actors_of_messages(one_host)
    assert tuned(denoise, file, *options)["trials"] == {"COMPLETE": 1, "PRUNED": 1, "FAIL": 0}
    assert actors_of_messages(one_host) == before + 1
    assert ends_of(runs_of("pairs")[1]) == {GOOD: ("FINISHED", "COMPLETE"), IDLE: ("KILLED", "PRUNED")}


def test_a_sweep_with_a_value_that_cannot_be_trained_is_refused_before_it_starts(project, denoise_fork, sweep):
    space = {"train.crop": {"choice": [32, 40]}}
    done = subprocess.run(
        [*denoise_fork, "tune", sweep(space=space), "net=unet_n2n"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert "train.crop=40 does not suit this net" in done.stderr
    assert not (project / "optuna.db").exists()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_ten_kills_of_the_driver_leave_the_exact_budget(project, denoise, sweep):
    """SIGKILL at seeded moments: no trial runs for ever, none is lost, none is run twice."""
    space = {"train.lr": {"float": [1e-4, 1e-2], "log": True}}
    command = [*denoise, "tune", sweep(space=space, trials=10), "--name=killed", "--json"]
    rng = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(rng.uniform(8, 40))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    command = [*denoise, "tune", "--resume", "killed", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    trials = trials_of("killed")
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 10
    assert len({trial.params["train.lr"] for trial in trials}) == 10
    parent, children = runs_of("killed")
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in children] == ["FINISHED"] * 10
    client = mlflow_client()
    for run in children:
        points = client.get_metric_history(run.info.run_id, "val_psnr")
        assert sorted(point.step for point in points) == [6, 12, 18, 24]


def start_and_wait(command, condition):
    """Start a sweep as a terminal does, in a group of processes of its own, and wait for something to happen."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    wait_for(lambda: condition() or process.poll() is not None)
    return process


def states_of(name):
    """Return the states of a sweep's trials without making a storage that is not there yet."""
    query = "SELECT state FROM trials JOIN studies USING (study_id) WHERE study_name = ? ORDER BY number"
    try:
        with closing(sqlite3.connect("file:optuna.db?mode=ro", uri=True)) as connection:
            return [state for (state,) in connection.execute(query, [name])]
    except sqlite3.OperationalError:
        return []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("send", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
def test_a_sweep_can_be_resumed_after_ctrl_c_and_sigterm(project, denoise, denoise_at_a_terminal, sweep, send, number):
    space = {"train.lr": {"float": [1e-4, 1e-2], "log": True}}
    command = [*denoise_at_a_terminal, "tune", sweep(space=space, trials=4, images=800), "--name=stopped", "--json"]
    process = start_and_wait(command, lambda: "COMPLETE" in states_of("stopped"))
    send(process.pid, number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert err.rstrip().endswith("interrupted; to resume it: denoise tune --resume stopped")
    assert "Traceback" not in err
    assert "RUNNING" not in states_of("stopped")
    assert left_behind() == []
    assert runs_of("stopped")[0].info.status == "KILLED"

    summary = tuned(denoise, "--resume", "stopped")
    assert summary["trials"] == {"COMPLETE": 4, "PRUNED": 0, "FAIL": 0}
    parent, children = runs_of("stopped")
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 5


def kill_process(name):
    """Kill a process of ours by the name that Ray gives it, and return whether there was one."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                process.kill()
                return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_whose_processes_are_killed_resumes_from_its_checkpoint(project, denoise, sweep):
    space = {"train.lr": {"float": [1e-4, 1e-2], "log": True}}
    options = [sweep(space=space, trials=2, images=1600), "--name=hurt", "--concurrency=1", "ray.max_failures=2"]
    saved = lambda number: list(project.glob(f"runs/ray/hurt-{number:03d}/checkpoints/step-*/manifest.json"))  # noqa: E731
    process = start_and_wait([*denoise, "tune", *options, "--json"], lambda: saved(0))
    assert kill_process("ray::ImplicitFunc")  # the trial's own process
    wait_for(lambda: saved(1) or process.poll() is not None)
    assert kill_process("ray::ImplicitFunc")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert json.loads(out)["trials"] == {"COMPLETE": 2, "PRUNED": 0, "FAIL": 0}
    assert left_behind() == []
    parent, children = runs_of("hurt")
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    client = mlflow_client()
    for run in children:
        points = client.get_metric_history(run.info.run_id, "val_psnr")
        assert sorted(point.step for point in points) == [200, 400, 600, 800]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_continues_without_mlflow_and_the_same_command_sends_what_that_lacks(project, denoise, sweep):
    server = Server(f"sqlite:///{Path('mlflow.db').absolute()}")
    server.start()
    space = {"train.lr": {"float": [1e-4, 1e-2], "log": True}}
    options = [sweep(space=space, trials=4), "--name=alone", f"tracking.uri={server.address}"]
    try:
        process = start_and_wait([*denoise, "tune", *options, "--json"], lambda: "COMPLETE" in states_of("alone"))
        server.kill()
        _, err = process.communicate(timeout=500)
        assert "Traceback" not in err
        assert states_of("alone") == ["COMPLETE"] * 4, err
        server.start()
        tuned(denoise, *options)
    finally:
        server.stop()
    parent, children = runs_of("alone")
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 5
    assert [run.data.tags[STATE_TAG] for run in children] == ["COMPLETE"] * 4
    client = mlflow_client()
    for run in children:
        points = client.get_metric_history(run.info.run_id, "val_psnr")
        assert sorted(point.step for point in points) == [6, 12, 18, 24]


@pytest.mark.slow
def test_pruned_trials_leave_no_resources_behind(project):
    """Actors, placement groups, processors and processes of a cluster that outlives the sweep."""
    script = ROOT / "benchmarks" / "sweep.py"
    done = subprocess.run(
        [sys.executable, script, "--trials", "8", "--images", "400"], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["left_behind"] == []
    assert summary["trials"]["PRUNED"] > 0
    assert sum(summary["trials"].values()) == 8

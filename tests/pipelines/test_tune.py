"""Sweeps on a real Ray, Optuna and MLflow."""

import csv
import json
import random
import signal
import subprocess
import time
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from denoise.checkpoint import load_denoiser
from pipelines.tune_results import STATE_TAG
from pipelines.tune_study import REASON

BASE = {"net": "cnn5", "ray": {"workers": 1}, "train": {"crop": 32, "batch_size": 2}}
GOOD, IDLE, WILD = 1e-3, 1e-9, 1e30  # learning rates: learns, learns nothing, leaves the numbers


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


def left_behind():
    ours = psutil.Process().children(recursive=True)
    return [process for process in ours if "ray::" in " ".join(process.cmdline())]


def tuned(denoise, *arguments, timeout=500):
    done = subprocess.run([*denoise, "tune", *arguments, "--json"], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_from_a_file_to_a_challenger(project, denoise, sweep):
    """One trial learns, one leaves the numbers: Optuna, MLflow and the table say so, and the model can be used."""
    found = tuned(denoise, sweep(space={"train.lr": {"choice": [GOOD, WILD]}}, trials=2, sampler="grid"), "--name=two")
    assert found["trials"] == {"COMPLETE": 1, "PRUNED": 0, "FAIL": 1}
    assert found["best"]["train.lr"] == GOOD
    assert left_behind() == []

    states = {trial.params["train.lr"]: trial for trial in trials_of("two")}
    assert [states[lr].state.name for lr in (GOOD, WILD)] == ["COMPLETE", "FAIL"]
    assert "the loss is" in states[WILD].user_attrs[REASON]
    assert list(states[GOOD].intermediate_values) == [1, 2, 3, 4]

    parent, children = runs_of("two")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best.val_psnr"] == found["best"]["val_psnr"]
    assert ends_of(children) == {GOOD: ("FINISHED", "COMPLETE"), WILD: ("FAILED", "FAIL")}
    client = mlflow_client()
    kept = {Path(entry.path).name for entry in client.list_artifacts(parent.info.run_id, "sweep")}
    assert {"trials.csv", "summary.json"} <= kept
    rows = list(csv.DictReader((project / "sweeps" / "two" / "trials.csv").open()))
    assert [row["state"] for row in rows] == [trial.state.name for trial in trials_of("two")]

    assert str(client.get_model_version_by_alias("denoise-gauss25", "challenger").version) == found["version"]
    assert load_denoiser(Path(found["model"])).name == "n2n"

    listed = subprocess.run([*denoise, "sweeps", "list", "--json"], capture_output=True, text=True, timeout=100)
    (row,) = json.loads(listed.stdout)
    assert (row["name"], row["trials"], row["best"]) == (
        "two",
        {"COMPLETE": 1, "FAIL": 1} if rows[0]["state"] == "COMPLETE" else {"FAIL": 1, "COMPLETE": 1},
        found["best"]["val_psnr"],
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pruned_trial_is_pruned_everywhere_and_a_finished_sweep_is_given_back(project, denoise, sweep):
    space = {"train.lr": {"choice": [GOOD, IDLE]}}
    file = sweep(space=space, trials=2, sampler="grid", pruner="asha", reduction=2, images=800)
    options = [file, "--name=pruned", "--concurrency=1", "--seed=1"]
    found = tuned(denoise, *options)
    assert found["trials"] == {"COMPLETE": 1, "PRUNED": 1, "FAIL": 0}
    states = {trial.params["train.lr"]: trial for trial in trials_of("pruned")}
    assert [states[lr].state.name for lr in (GOOD, IDLE)] == ["COMPLETE", "PRUNED"]
    assert len(states[IDLE].intermediate_values) < len(states[GOOD].intermediate_values)
    assert ends_of(runs_of("pruned")[1]) == {GOOD: ("FINISHED", "COMPLETE"), IDLE: ("KILLED", "PRUNED")}
    assert left_behind() == []

    assert tuned(denoise, *options)["best"] == found["best"]  # not searched again
    assert len(trials_of("pruned")) == 2


def test_a_sweep_of_what_cannot_be_trained_is_refused_before_it_starts(project, denoise, sweep):
    space = {"train.crop": {"choice": [32, 40]}}
    done = subprocess.run(
        [*denoise, "tune", sweep(space=space), "net=unet_n2n"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert "train.crop=40 does not suit this net" in done.stderr
    assert not (project / "optuna.db").exists()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_ten_kills_of_the_driver_leave_the_exact_budget(project, denoise, sweep):
    """SIGKILL at seeded moments: no trial runs for ever, none is lost, none is asked for twice."""
    space = {"train.lr": {"float": [1e-4, 1e-2], "log": True}}
    command = [*denoise, "tune", sweep(space=space, trials=10), "--name=killed", "--json"]
    rng = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(rng.uniform(8, 40))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = [*denoise, "tune", "--resume", "killed", "--json"]
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=1200)
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

"""Training on a real Ray cluster with a real MLflow database; workers and the driver are killed for real."""

import json
import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.pipelines.processes import left_behind
from tests.pipelines.s3_helpers import s3_environment

SMALL = ["net=cnn5", "train.log_every=3", "train.checkpoint_every=6"]


def start(command, *overrides):
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [*command, "train", "--json", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out)


def wait_for(condition, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def checkpoints(project: Path) -> list[str]:
    return sorted(path.parent.name for path in project.glob("runs/ray/*/checkpoints/step-*/manifest.json"))


def until_killed(driver) -> str:
    """Wait until a driver and all that it started are gone, and return its standard error."""
    family = []
    while driver.poll() is None:
        family = psutil.Process(driver.pid).children(recursive=True) or family
        time.sleep(0.2)
    _, err = driver.communicate()
    assert driver.returncode == -9
    psutil.wait_procs(family, timeout=60)
    return err


def runs_of(project: Path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("denoise")
    return client, client.search_runs([experiment.experiment_id])


def test_a_run_on_ray_is_recorded_and_exported_and_the_same_command_returns_it(project, denoise_fork):
    document = finish(start(denoise_fork))
    client, (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == document["run_id"]
    assert run.data.params["train.steps"] == "12"
    assert run.data.params["method"] == "n2n"
    assert {"data_digest", "code_digest"} <= set(run.data.tags)
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == [2, 4, 6, 8, 10, 12]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val_psnr")] == [6, 12]
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"small"}
    assert any(item.path.endswith(".png") for item in client.list_artifacts(run.info.run_id, "images"))
    assert sorted(path.name for path in Path(document["model"]).iterdir()) == [
        "metrics.jsonl",
        "model.json",
        "net.safetensors",
        "training_images.bin",
    ]
    assert left_behind() == []

    before = load_file(Path(document["model"]) / "net.safetensors")
    again = finish(start(denoise_fork))  # a finished run is returned
    assert again["run_id"] == document["run_id"]
    _, (same,) = runs_of(project)
    assert same.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [2, 4, 6, 8, 10, 12]
    after = load_file(Path(document["model"]) / "net.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_run_through_kills_damage_and_an_outage_ends_as_one_finished_run(project, denoise):
    """A checkpoint is damaged, a worker is killed and nothing else may fail, MLflow is away, the driver is killed."""
    steps = ["train.steps=60", "train.eval_every=60", *SMALL]
    faults = ["corrupt-checkpoint:step=12", "kill:rank=1,step=17", "tracker-down:step=6", "kill:rank=driver,step=36"]
    faults += ["hang:rank=0,step=40,seconds=60"]  # the driver looks every half second, and must find it running
    until_killed(start(denoise, *steps, "ray.max_failures=1", *[f"--inject={fault}" for fault in faults]))
    assert [run.info.status for run in runs_of(project)[1]] == ["RUNNING"]
    at = checkpoints(project)[-1]
    assert at == "step-00000036"  # the worker's death was outlived

    process = start(denoise, *steps)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert f"resuming from {at}" in err
    assert f"to resume it: denoise train --json {steps[0]}" in err
    client, (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(3, 61, 3))  # nothing twice, nothing missing

    # The interrupted run on two workers has learnt what an uninterrupted one of a single process learns.
    local = finish(start(denoise, "--local", *steps))
    one, two = (load_file(Path(document["model"]) / "net.safetensors") for document in (local, json.loads(out)))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # twenty deaths and six launches
def test_a_run_killed_twenty_times_learns_exactly_what_an_undisturbed_one_does(project, denoise):
    """SIGKILL goes to workers, in the middle of writing a checkpoint as well, and to the driver, at seeded steps."""
    steps = ["net=cnn5", "train.steps=160", "train.eval_every=160", "train.checkpoint_every=3", "train.log_every=1"]
    whole = finish(start(denoise, *steps, "--name=whole"))
    rng, kills = random.Random(0), 0
    for launch in range(4):  # each ends with the driver, after four other deaths
        at = [40 * launch + 7 * number + rng.randrange(3, 6) for number in range(5)]
        faults = [f"{rng.choice(['kill', 'kill-writing'])}:rank=0,step={step}" for step in at[:2]]
        faults += [f"kill:rank={rng.randrange(2)},step={step}" for step in at[2:4]]
        faults += [f"kill:rank=driver,step={at[4]}", f"hang:rank=0,step={at[4] + 2},seconds=60"]
        process = start(
            denoise, *steps, "--name=killed", "ray.max_failures=4", *[f"--inject={fault}" for fault in faults]
        )
        err = until_killed(process)
        starts = err.count("workers: 2")
        assert starts == 5, err  # four deaths, each followed by a start
        kills += starts
    document = finish(start(denoise, *steps, "--name=killed"))
    assert kills == 20
    one, two = (load_file(Path(document["model"]) / "net.safetensors") for document in (whole, document))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) == 0.0
    client, runs = runs_of(project)
    (run,) = [run for run in runs if run.info.run_name == "killed"]
    assert run.info.status == "FINISHED"
    for key in ("loss", "lr"):
        points = client.get_metric_history(run.info.run_id, key)
        assert sorted(point.step for point in points) == list(range(1, 161))


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_another_number_of_workers_resumes(project, denoise):
    steps = ["train.steps=1500", "train.eval_every=1500", *SMALL, "train.log_every=25", "train.checkpoint_every=1500"]
    driver = start(denoise, *steps)
    wait_for(lambda: journaled(project) or driver.poll() is not None)
    driver.terminate()
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 143, err
    assert "Traceback" not in err
    (checkpoint,) = checkpoints(project)
    step = int(checkpoint.removeprefix("step-"))
    assert f"stopped after {step} of 1500 steps; the same command goes on from there." in err
    client, (run,) = runs_of(project)
    assert run.info.status == "KILLED"

    # Three workers are wanted and one would do: there is room for two, or for three where there are more processors.
    again = start(denoise, *steps, "ray.workers=3", "ray.min_workers=1", "ray.cpus_per_worker=0.6")
    _, err = again.communicate(timeout=400)
    assert again.returncode == 0, err
    assert f"resuming from {checkpoint}" in err
    _, (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in points] == list(range(25, 1501, 25))


@pytest.mark.slow
def test_a_run_whose_driver_was_killed_resumes_from_checkpoints_on_s3(project, denoise, s3, monkeypatch):
    steps = ["train.steps=40", "train.eval_every=20", *SMALL]
    near = finish(start(denoise, *steps, "--name=near"))
    with s3_environment(monkeypatch, s3.port):
        far = [*steps, "--name=far", "ray.storage=s3://bucket/runs"]
        faults = ["--inject=kill:rank=driver,step=21", "--inject=hang:rank=0,step=26,seconds=60"]
        until_killed(start(denoise, *far, *faults))
        process = start(denoise, *far)
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "far: resuming from step-000000" in err
    one, two = (load_file(Path(document["model"]) / "net.safetensors") for document in (near, json.loads(out)))
    assert all(torch.equal(one[name], two[name]) for name in one)
    objects = s3.client().list_objects_v2(Bucket="bucket", Prefix="runs/far/checkpoints/")["Contents"]
    assert "runs/far/checkpoints/step-00000040/manifest.json" in {entry["Key"] for entry in objects}
    client, runs = runs_of(project)
    (run,) = [run for run in runs if run.info.run_name == "far"]
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == sorted({*range(3, 41, 3), 20, 40})


@pytest.mark.slow
def test_a_worker_that_hangs_is_abandoned_and_started_again(project, denoise):
    steps = ["train.steps=40", "train.eval_every=40", *SMALL]
    process = start(denoise, *steps, "ray.timeout=15", "--inject=hang:rank=1,step=15,seconds=300")
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert err.count("workers: 2") == 2
    assert "resuming from step-000000" in err


def journaled(project: Path) -> list[Path]:
    """Return the journals that hold metrics of a training step."""
    journals = project.glob("runs/ray/*/journal/metrics.jsonl")
    return [path for path in journals if '"loss"' in path.read_text()]


@pytest.mark.slow
def test_a_run_whose_shard_was_damaged_fails_and_names_the_shard(project, denoise):
    """The shard changes after the driver checked it: bad input found by a worker, and no retry spent on it."""
    shard = next((project / "data/shards/train/small").glob("000001.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(bytes(data))
    process = start(denoise, "train.batch_size=2")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 1
    assert err.count("error: ") == 1
    assert "000001.tar has another sha256" in err
    assert "Traceback" not in err
    _, (run,) = runs_of(project)
    assert run.info.status == "FAILED"

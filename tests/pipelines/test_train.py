"""Training on a real Ray cluster with a real MLflow database; workers and the driver are killed for real."""

import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

SLOW_STEPS = [
    "train.steps=60",
    "train.crop=64",
    "train.checkpoint_every=10",
    "train.log_every=5",
    "train.eval_every=60",
]


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
    return sorted(path.parent.name for path in project.glob("runs/ray/*/step-*/manifest.json"))


def workers(driver) -> list[psutil.Process]:
    family = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in family if "RayTrainWorker" in " ".join(process.cmdline())]


def runs_of(project: Path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("denoise")
    return client, client.search_runs([experiment.experiment_id])


def test_a_run_on_ray_is_recorded_exported_and_given_back(project, denoise):
    document = finish(start(denoise))
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
    ]
    assert not workers_left()

    before = load_file(Path(document["model"]) / "net.safetensors")
    again = finish(start(denoise))  # a finished run is given back
    assert again["run_id"] == document["run_id"]
    _, (same,) = runs_of(project)
    assert same.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [2, 4, 6, 8, 10, 12]
    after = load_file(Path(document["model"]) / "net.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def workers_left() -> list[psutil.Process]:
    """Ray workers of ours that outlived their driver."""
    ours = psutil.Process().children(recursive=True)
    return [process for process in ours if "ray::" in " ".join(process.cmdline())]


def test_a_killed_worker_and_a_killed_driver_end_in_one_finished_run(project, denoise):
    driver = start(denoise, *SLOW_STEPS)
    wait_for(lambda: checkpoints(project) or driver.poll() is not None)
    workers(driver)[0].kill()  # a worker: Ray Train restarts them all from the checkpoint
    seen = checkpoints(project)[-1]
    wait_for(lambda: checkpoints(project)[-1] > seen or driver.poll() is not None)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()  # the driver: the same command goes on
    driver.communicate()
    psutil.wait_procs(family, timeout=60)
    assert [run.info.status for run in runs_of(project)[1]] == ["RUNNING"]
    at = int(checkpoints(project)[-1].removeprefix("step-"))
    assert 20 <= at < 60

    document = finish(start(denoise, *SLOW_STEPS))
    client, (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(5, 61, 5))  # nothing twice, nothing missing

    # The interrupted run on two workers learnt what an uninterrupted one of a single process learns.
    local = subprocess.run([*denoise, "train", "--local", "--json", *SLOW_STEPS], capture_output=True, text=True)
    assert local.returncode == 0, local.stderr
    one = load_file(Path(json.loads(local.stdout)["model"]) / "net.safetensors")
    two = load_file(Path(document["model"]) / "net.safetensors")
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


@pytest.mark.slow
def test_a_shard_that_breaks_during_training_fails_the_run_by_name(project, denoise):
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

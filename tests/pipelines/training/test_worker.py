"""The task that the driver hands to the workers of a run."""

import dataclasses
import pickle
from pathlib import Path

import pytest

from denoise.config import load_config
from denoise.training.fault_injection import parse_fault
from pipelines.tracking.runs import DataUse, RunSpec
from pipelines.training.inputs import Part
from pipelines.training.worker import WorkerTask

URI = "postgresql://ada:secret@host/mlflow"


@pytest.fixture
def task():
    return WorkerTask(
        config=load_config(None, [f"tracking.uri={URI}", "method=n2v", "method.mask_ratio=0.01"]),
        name="run",
        storage="s3://bucket/runs",
        parts=(Part("small", "train", "abc", "/data"),),
        provenance={"run": "run"},
        training_images=b"images",
        run_spec=RunSpec(
            URI, "denoise", "run", {"method": "n2v"}, {"seed": 0}, (DataUse("small", "train", "abc", "/"),)
        ),
        journal=Path("/runs/run/journal"),
        channel=None,
        preemptible=True,
        faults=(parse_fault("kill:rank=1,step=37"),),
        profile=None,
    )


def test_a_task_arrives_at_a_worker_as_it_was(task):
    assert pickle.loads(pickle.dumps(task)) == task  # as Ray sends it


def test_the_text_of_a_task_that_ray_shows_holds_no_password(task):
    assert "secret" not in f"{task}{task!r}"


def test_a_task_cannot_be_changed(task):
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"

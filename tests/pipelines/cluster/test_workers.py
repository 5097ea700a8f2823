"""Workers and devices, on a real Ray of four cores that believes to have two GPUs: no test computes on them."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

CLUSTER = """\
import dataclasses, json, os
import ray
from denoise import distributed
from denoise.config import load_config
from denoise.errors import UserError
from pipelines.cluster.auth import create_token
from pipelines.cluster.workers import fit_to_cluster, use_assigned_device, worker_capacity, worker_needs

create_token()
ray.init(address="local", num_cpus=4, num_gpus=GPUS, include_dashboard=False, logging_level="ERROR")

def fitted(*overrides, side_by_side=False):
    try:
        config = fit_to_cluster(load_config(None, overrides), side_by_side)
    except UserError as error:
        return str(error)
    return [config.ray.workers, config.ray.gpu, worker_capacity(config), worker_needs(config)]

@ray.remote
class Worker:
    def device(self, visible=None):
        import torch
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        use_assigned_device(load_config(None, ["ray.cpus_per_worker=3"]))
        return str(distributed.device()), torch.get_num_threads()

def devices(gpus, visible=None, count=1):
    workers = [Worker.options(num_gpus=gpus).remote() for _ in range(count)]  # all at a time
    return ray.get([worker.device.remote(visible) for worker in workers])

CASES
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run lines on a cluster with a number of GPUs; return what they print as JSON, and what is told the user."""

    def run(gpus: int, *lines: str) -> tuple[list[Any], str]:
        script = CLUSTER.replace("GPUS", str(gpus)).replace(
            "CASES", "\n".join(f"print(json.dumps({line}))" for line in lines)
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path_factory.mktemp("ray"),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line[:1] in '["'], done.stderr

    return run


@pytest.fixture(scope="module")
def with_gpus(ask):
    """Answers of a cluster with two GPUs."""
    answers, said = ask(
        2,
        "fitted()",
        "fitted('train.batch_size=1')",
        "fitted('ray.workers=3')",
        "fitted('ray.workers=1')",
        "fitted('ray.gpu=no')",
        "fitted('ray.gpus_per_worker=0.5', side_by_side=True)",
        "fitted('ray.gpus_per_worker=0.5')",
        "fitted('ray.workers=3', 'ray.gpu=yes')",
        "devices(1)",
        "devices(0, '0,1')",
        "devices(1, '0,1', count=2)",
    )
    return answers, [line for line in said.splitlines() if "idle" in line]


CPU, GPU = {"CPU": 1}, {"CPU": 1, "GPU": 1}


def test_auto_takes_all_gpus_but_no_more_workers_than_a_batch_has_crops(with_gpus):
    answers, _ = with_gpus
    assert answers[0] == [2, "yes", 2, GPU]
    assert answers[1] == [1, "yes", 2, GPU]


def test_workers_that_do_not_all_get_a_gpu_compute_on_cores(with_gpus):
    answers, _ = with_gpus
    assert answers[2] == [3, "no", 4, CPU]
    assert answers[4] == [4, "no", 4, CPU]
    assert answers[7] == [3, "yes", 2, GPU]  # it waits for a third


def test_only_trainings_side_by_side_share_a_gpu(with_gpus):
    answers, _ = with_gpus
    assert answers[5] == [1, "yes", 4, {"CPU": 1, "GPU": 0.5}]
    assert answers[6].startswith("ray.gpus_per_worker=0.5 with 4 workers would let workers of one training share a GPU")


def test_gpus_that_stay_idle_are_told(with_gpus):
    _, said = with_gpus
    assert said == [
        "1 of 2 GPUs stay idle with ray.workers=1; a batch of 1 has crops for no more, so raise train.batch_size",
        "2 of 2 GPUs stay idle with ray.workers=3; ray.workers=auto uses as many as there are",
        "1 of 2 GPUs stay idle with ray.workers=1; ray.workers=auto uses as many as there are",
    ]


def test_a_process_computes_on_what_ray_has_assigned(with_gpus):
    answers, _ = with_gpus
    assert answers[8][0][0] == "cuda:0"
    assert answers[9] == [["cpu", 3]]  # although it sees both
    assert sorted(device for device, _ in answers[10]) == ["cuda:0", "cuda:1"]


@pytest.mark.slow
def test_without_gpus_auto_takes_the_cores(ask):
    answers, said = ask(
        0,
        "fitted()",
        "fitted('train.batch_size=64', 'ray.cpus_per_worker=2')",
        "fitted('ray.cpus_per_worker=5')",
        "fitted('ray.gpu=yes')",
        "fitted(side_by_side=True)",
    )
    assert answers[0] == [4, "no", 4, CPU]
    assert answers[1] == [2, "no", 2, {"CPU": 2}]
    assert "no host has 5 CPUs for one" in answers[2]
    assert "no host has a GPU and 1 CPUs for one" in answers[3]
    assert answers[4] == [1, "no", 4, CPU]
    assert "idle" not in said

"""How many workers a training gets from the connected cluster, on which devices, and with which resources."""

import dataclasses
import os
from typing import TYPE_CHECKING

from denoise.config import Config
from denoise.errors import UserError
from pipelines.console import say

if TYPE_CHECKING:
    import torch


def fit_to_cluster(config: Config, side_by_side: bool = False) -> Config:
    """Return the configuration with numbers and yes or no in place of ``auto`` in ``ray.workers`` and ``ray.gpu``.

    Workers are as many as there is room for, on GPUs where the cluster has any, else on cores, but no more than a batch
    has crops. GPUs are used if there is one for each worker.

    Args:
        config: of a training on the connected cluster.
        side_by_side: whether it is one of many trainings: each of these gets one worker.

    Raises:
        UserError: there is no room for a worker whose number is ``auto``, or workers of one training would share a GPU.
    """
    wanted = config.ray.workers
    if wanted == "auto" and side_by_side:
        wanted = 1
    gpu = config.ray.gpu
    if gpu == "auto":
        gpu = "yes" if _worker_room(config, gpu=True) >= (1 if wanted == "auto" else wanted) else "no"
    if wanted == "auto":
        wanted = min(_worker_room(config, gpu == "yes"), config.train.batch_size)
        if not wanted:
            needs = "a GPU and " * (gpu == "yes") + f"{config.ray.cpus_per_worker:g} CPUs"
            raise UserError(
                f"ray.workers=auto counts the workers that the cluster has room for now, and no host has {needs} for "
                "one; give ray.workers as a number to wait for hosts, or lower what a worker needs."
            )
    fitted = dataclasses.replace(config, ray=dataclasses.replace(config.ray, workers=wanted, gpu=gpu))
    _refuse_shared_gpu(fitted)
    if not side_by_side and config.ray.gpu != "no":
        _tell_idle_gpus(fitted)
    return fitted


def worker_needs(config: Config) -> dict[str, float]:
    """Return the resources of one worker, by Ray's names; ``fit_to_cluster`` has made ``config``."""
    return _needs(config, config.ray.gpu == "yes")


def worker_capacity(config: Config) -> int:
    """Return how many workers the connected cluster could run if nothing else ran on it."""
    return _worker_room(config, config.ray.gpu == "yes")


def use_assigned_device(config: Config) -> None:
    """Let this process, which Ray has started, compute on the GPU that Ray gave it, or on its share of the cores.

    A process that asked for no GPU sees all of its host's: Ray does not hide them (ray#54868).
    """
    import torch

    from denoise import distributed

    device = _assigned_device()
    distributed.use_device(device)
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))


def _assigned_device() -> "torch.device":
    import ray
    import torch

    assigned = [str(gpu) for gpu in ray.get_gpu_ids()]
    if not assigned:
        return torch.device("cpu")
    # Workers of a training on one host see the GPUs of all of them.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return torch.device("cuda", visible.index(assigned[0]) if assigned[0] in visible else int(assigned[0]))


def _needs(config: Config, gpu: bool) -> dict[str, float]:
    return {"CPU": config.ray.cpus_per_worker, **({"GPU": config.ray.gpus_per_worker} if gpu else {})}


def _worker_room(config: Config, gpu: bool) -> int:
    import ray

    needs = _needs(config, gpu)
    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(host.get(kind, 0) // need) for kind, need in needs.items()) for host in hosts)


def _refuse_shared_gpu(config: Config) -> None:
    options = config.ray
    if options.gpu == "yes" and options.worker_count > 1 and options.gpus_per_worker < 1:
        raise UserError(
            f"ray.gpus_per_worker={options.gpus_per_worker:g} with {options.worker_count} workers would let workers of "
            "one training share a GPU, which NCCL refuses; set ray.gpus_per_worker=1, or ray.workers=1 (trainings side "
            "by side can share one)."
        )


def _tell_idle_gpus(config: Config) -> None:
    """Say which part of the cluster's GPUs a training leaves idle, and how it would use them."""
    import ray

    options, gpus = config.ray, int(ray.cluster_resources().get("GPU", 0))
    used = round(options.worker_count * options.gpus_per_worker) if options.gpu == "yes" else 0
    if used >= gpus:
        return
    most = min(gpus, config.train.batch_size)
    advice = (
        "ray.workers=auto uses as many as there are"
        if options.worker_count != most
        else f"a batch of {config.train.batch_size} has crops for no more, so raise train.batch_size"
    )
    say(f"{gpus - used} of {gpus} GPUs stay idle with ray.workers={options.worker_count}; {advice}")

"""rank(), world_size() and wrap(net), whether or not a process group exists."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """Return the rank of this process, 0 where there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device() -> torch.device:
    """Return the device of this process: its own GPU under ``torchrun`` or Ray, the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def start_from_environment() -> None:
    """Join the process group that ``torchrun`` describes in the environment; do nothing without it."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def wrap(module: nn.Module) -> nn.Module:
    """Return the module with its gradients averaged over all ranks, itself where there is one rank."""
    if world_size() == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def union(found: dict[int, str]) -> dict[int, str]:
    """Return what any rank has found; where several found the same key they say the same."""
    if world_size() == 1:
        return found
    everyone: list[dict[int, str]] = [{} for _ in range(world_size())]
    dist.all_gather_object(everyone, found)
    return {key: value for one in everyone for key, value in one.items()}


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all ranks of ``values``, which every rank has already weighted by its share."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values

"""Ranks and what they tell one another; every function also works without a process group, as rank 0 of 1."""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from denoise.errors import UserError

T = TypeVar("T")

# Keeps the last DDP module alive. Where a collective has timed out, its end would wait for Gloo's threads with Python's
# lock held, which one of them may be waiting for: the process would hang instead of reporting the rank that is missing.
_last_wrapped: list[nn.Module] = []
_device: list[torch.device] = []  # what use_device was told last


def rank() -> int:
    """Return the rank of this process, 0 where there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device() -> torch.device:
    """Return the device of this process: what ``use_device`` was told, else its GPU if there is one, else the CPU."""
    if _device:
        return _device[0]
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def use_device(device: torch.device) -> None:
    """Compute on this device in this process from now on."""
    _device[:] = [device]


def start_from_environment(timeout: float = 600) -> None:
    """Join the process group that ``torchrun`` describes in the environment; do nothing without one.

    ``timeout`` is how many seconds the ranks wait for one that does not answer.

    Raises:
        UserError: two processes would share a GPU.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return
    own, patience = device(), timedelta(seconds=timeout)
    if own.type == "cpu":
        dist.init_process_group("gloo", timeout=patience)
        return
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        raise UserError(
            f"torchrun has started {processes} processes on a machine with {gpus} GPUs, and two cannot share one; "
            f"start it with --nproc-per-node={gpus}, or compute on CPUs with ray.gpu=no."
        )
    dist.init_process_group("nccl", timeout=patience, device_id=own)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def wrap(module: nn.Module, static_graph: bool = False) -> nn.Module:
    """Return the module in DDP, which averages its gradients over all ranks; the module itself if there is one rank.

    ``static_graph`` promises that every step runs the same graph, with one backward pass.
    """
    if world_size() == 1:
        return module
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=static_graph)
    _last_wrapped[:] = [wrapped]
    return wrapped


def from_rank_zero(compute: Callable[[], T]) -> T:
    """Return, on every rank, what ``compute`` returns on rank 0; it is called there only."""
    if world_size() == 1:
        return compute()
    result = [compute() if rank() == 0 else None]
    dist.broadcast_object_list(result)
    return cast(T, result[0])


class Agreement:
    """Lets all ranks act at the same step on a request that any of them has received, without delaying a step.

    Every rank must make its own at the same time. It speaks over the hosts (gloo), also where gradients are averaged by
    GPUs: asking a GPU would mean to wait for all that it has been told to compute.
    """

    def __init__(self, timeout: float = 600) -> None:
        """Open the ranks' channel; ``timeout`` is how many seconds they wait for one that does not answer."""
        own_group = world_size() > 1 and dist.get_backend() != "gloo"
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if own_group else None
        self._pending: tuple[torch.Tensor, Any] | None = None

    def reached(self, requested: bool) -> bool:
        """Return the same on every rank: whether one had the request; every rank must call this before every step.

        With several ranks the answer is about the previous step: it has arrived while that step was computed.
        """
        if world_size() == 1:
            return requested
        previous, self._pending = self._pending, None
        requests = torch.tensor([float(requested)])
        self._pending = requests, dist.all_reduce(requests, group=self._group, async_op=True)
        if previous is None:
            return False
        previous[1].wait()
        return bool(previous[0].item())


def union(entries: dict[int, str]) -> dict[int, str]:
    """Return the entries of all ranks; where several ranks have the same key they have the same value."""
    if world_size() == 1:
        return entries
    by_rank: list[dict[int, str]] = [{} for _ in range(world_size())]
    dist.all_gather_object(by_rank, entries)
    return {key: value for rank_entries in by_rank for key, value in rank_entries.items()}


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of ``values`` over all ranks, in place; each rank has weighted its own by its part of a batch."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def copy_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0, such as the statistics of batch normalisation, which are in its model."""
    for buffer in module.buffers() if world_size() > 1 else ():
        dist.broadcast(buffer, src=0)


def total_modulo(value: int) -> int:
    """Return the sum over all ranks of an integer below 2^64, modulo 2^64."""
    signed = value - 2**64 if value >= 2**63 else value  # int64 wraps around, as it should
    return int(total(torch.tensor([signed], device=device())).item()) % 2**64


def gathered(value: int) -> list[int]:
    """Return the value of every rank, in order of rank."""
    values = torch.zeros(world_size(), dtype=torch.int64, device=device())
    values[rank()] = value
    return [int(number) for number in total(values).tolist()]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over all ranks, as DDP does during the backward pass."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()

"""rank(), world_size() and wrap(net), whether or not a process group exists."""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


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


def start_from_environment(timeout: float = 600) -> None:
    """Join the process group that ``torchrun`` describes in the environment; do nothing without it.

    ``timeout`` is for how many seconds the others wait for a rank that does not answer.
    """
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def wrap(module: nn.Module, static_graph: bool = False) -> nn.Module:
    """Return the module with its gradients averaged over all ranks, itself where there is one rank.

    ``static_graph`` promises that every step runs the same graph, and one backward pass each.
    """
    if world_size() == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=static_graph)


def from_first(ask: Callable[[], T]) -> T:
    """Return what rank 0 answers; the other ranks are not asked."""
    if world_size() == 1:
        return ask()
    answer = [ask() if rank() == 0 else None]
    dist.broadcast_object_list(answer)
    return cast(T, answer[0])


class Agreement:
    """Finds one step at which every rank knows of a wish that any of them has, without holding up a step for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: tuple[torch.Tensor, Any] | None = None

    def reached(self, wish: bool) -> bool:
        """Say, alike on every rank, whether one had the wish; every rank must ask before every step.

        With several ranks the answer is that of the step before, which has arrived while that step was computed.
        """
        if world_size() == 1:
            return wish
        before, self._pending = self._pending, None
        answer = torch.tensor([float(wish)], device=self._device)
        self._pending = answer, dist.all_reduce(answer, async_op=True)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0].item())


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


def total_modulo(value: int) -> int:
    """Return the sum over all ranks of an integer below 2^64, modulo 2^64."""
    signed = value - 2**64 if value >= 2**63 else value  # int64 wraps around, which is what is wanted
    return int(total(torch.tensor([signed], device=device())).item()) % 2**64


def gathered(value: int) -> list[int]:
    """Return the value of every rank, in their order."""
    values = torch.zeros(world_size(), dtype=torch.int64, device=device())
    values[rank()] = value
    return [int(one) for one in total(values).tolist()]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over all ranks, as DDP does while it computes them."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    at = 0
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
        at += gradient.numel()

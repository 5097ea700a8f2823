"""Averages gradients over ranks: through memory that they share where all are on one host and compute on its CPU.

Between two processes of one machine gloo copies every byte about eight times, through sockets: a tenth of a step of a
small net. Here each rank writes its gradients once, and adds up its share of all ranks' in the order of the ranks.
"""

import mmap
import os
import platform
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from denoise import distributed

SPINS = 50  # looks at the other ranks without a pause, about a tenth of a millisecond
PAUSE_SECONDS = 50e-6  # between two later looks
ALIVE_SECONDS = 0.5  # between two looks whether the ranks that are missing are still alive
HEADER, LINE = 65536, 64  # bytes: of what precedes the gradients, and of a line of the processor's cache
TOKEN = 16  # bytes that tell the ranks' memory from other files, at the start of the header

Average = Callable[[], None]


def shared_averaging(net: nn.Module, timeout: float) -> Average | None:
    """Return what averages the gradients of a net through shared memory; None where the ranks cannot share memory.

    Every rank must call this at the same time, and later what it returns. All ranks get the net of rank 0.

    Args:
        net: what is trained.
        timeout: seconds that the ranks wait for one that does not answer.
    """
    if distributed.world_size() == 1 or dist.get_backend() != "gloo":
        return None
    if len(set(distributed.union({distributed.rank(): socket.gethostname()}).values())) > 1:
        return None
    parameters, buffers = list(net.parameters()), [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    floats = _size(parameters) * (distributed.world_size() + 1) + _size(buffers)
    # Only x86 lets other processors see writes in the order in which they were made, without a fence.
    possible = platform.machine() == "x86_64" and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in (*parameters, *buffers)
    )
    memory = _shared_memory(HEADER + 4 * floats, possible)
    if memory is None:
        return None
    for tensor in net.state_dict().values():
        dist.broadcast(tensor, 0)
    return SharedGradients(parameters, buffers, memory, timeout).average


def plain_averaging(net: nn.Module) -> Average:
    """Return what averages the gradients of a net by a collective operation."""
    return partial(distributed.average_gradients, list(net.parameters()))


def _shared_memory(size: int, possible: bool) -> mmap.mmap | None:
    """Return memory of ``size`` bytes that all ranks share, on every rank; None where it is not possible for one.

    It has no name in the file system, so that nothing is left of it however the ranks end.
    """
    file, memory = -1, None
    if distributed.rank() == 0 and possible:
        file, memory = _new_memory(size)
    token = memory[:TOKEN] if memory else b""
    offer = distributed.from_rank_zero(lambda: (os.getpid(), file, token))
    if distributed.rank() > 0 and possible:
        memory = _open_memory(*offer, size)
    missing = distributed.total(torch.tensor([float(memory is None)])).item()
    if file >= 0:
        os.close(file)  # all have mapped it
    return None if missing else memory


def _new_memory(size: int) -> tuple[int, mmap.mmap | None]:
    """Return an anonymous file in memory and what maps it; -1 and None where there is no room."""
    try:
        file = os.memfd_create("denoise-gradients")
        os.posix_fallocate(file, 0, size)  # later, a lack of memory would kill the ranks
        memory = mmap.mmap(file, size)
    except OSError:
        return -1, None
    memory[:TOKEN] = secrets.token_bytes(TOKEN)
    return file, memory


def _open_memory(pid: int, file: int, token: bytes, size: int) -> mmap.mmap | None:
    """Return the memory of rank 0, None if that is on another host, or not to be seen from here."""
    try:
        with Path(f"/proc/{pid}/fd/{file}").open("r+b") as stream:
            memory = mmap.mmap(stream.fileno(), size)
    except (OSError, ValueError):
        return None
    return memory if token and memory[:TOKEN] == token else None


class SharedGradients:
    """The gradients of all ranks in one piece of memory, their mean, and the buffers of rank 0 for all ranks."""

    def __init__(
        self, parameters: list[nn.Parameter], buffers: list[Tensor], memory: mmap.mmap, timeout: float
    ) -> None:
        self._rank, self._world, self._timeout = distributed.rank(), distributed.world_size(), timeout
        self._parameters, self._buffers, self._turn = parameters, buffers, 0
        size = _size(parameters)
        floats = torch.frombuffer(memory, dtype=torch.float32, offset=HEADER)
        values = floats[: (self._world + 1) * size].view(self._world + 1, size)
        self._gradients, self._mean = values[:-1], values[-1]
        self._shared_buffers = _views(floats[values.numel() :], buffers)
        self._own_views, self._mean_views = (_views(row, parameters) for row in (values[self._rank], self._mean))
        bounds = [size * rank // self._world for rank in (self._rank, self._rank + 1)]
        self._share = slice(*bounds)  # of the mean, that this rank computes
        words = torch.frombuffer(memory, dtype=torch.int64, count=HEADER // 8)[TOKEN // 8 :]
        self._arrived = words[:: LINE // 8].numpy()  # by rank: the number of barriers that it has reached
        self._pids = distributed.gathered(os.getpid())

    def average(self) -> None:
        """Replace the gradients by their mean over all ranks, and the buffers by those of rank 0.

        Raises:
            RuntimeError: a rank has died, or has not answered in time.
        """
        for parameter, view in zip(self._parameters, self._own_views, strict=True):
            view.zero_() if parameter.grad is None else view.copy_(parameter.grad)
        if self._rank == 0:
            self._copy(self._buffers, self._shared_buffers)
        self._barrier()
        if self._rank > 0:
            self._copy(self._shared_buffers, self._buffers)
        mean, share = self._mean[self._share], self._gradients[:, self._share]
        torch.add(share[0], share[1], out=mean)
        for gradient in share[2:]:
            mean += gradient
        mean /= self._world
        self._barrier()
        # The mean is overwritten after the next barrier at the earliest, and no rank gets there with it in use.
        for parameter, view in zip(self._parameters, self._mean_views, strict=True):
            if parameter.grad is not None:
                parameter.grad = view

    @staticmethod
    def _copy(tensors: list[Tensor], targets: list[Tensor]) -> None:
        for tensor, target in zip(tensors, targets, strict=True):
            target.copy_(tensor)

    def _barrier(self) -> None:
        """Wait until all ranks have come here."""
        self._turn += 1
        self._arrived[self._rank] = self._turn
        spins, started = 0, time.monotonic()
        checked = started
        while (self._arrived[: self._world] < self._turn).any():
            spins += 1
            time.sleep(0 if spins < SPINS else PAUSE_SECONDS)
            now = time.monotonic()
            if now - checked > ALIVE_SECONDS:
                checked = now
                self._check(now - started)

    def _check(self, seconds: float) -> None:
        """Raise a RuntimeError if a rank that is waited for has died, or the wait takes too long."""
        missing = [rank for rank in range(self._world) if self._arrived[rank] < self._turn]
        for rank in missing:
            if not _is_alive(self._pids[rank]):
                raise RuntimeError(f"rank {rank} has died")
        if seconds > self._timeout:
            raise RuntimeError(f"rank {missing[0]} has not answered for {self._timeout:.0f} s (ray.timeout)")


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a flat tensor that belong to some tensors, each laid out in memory as its tensor is."""
    views, offset = [], flat.storage_offset()
    for tensor in tensors:
        views.append(flat.as_strided(tensor.shape, tensor.stride(), offset))
        offset += tensor.numel()
    return views


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends no signal
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

"""Injected faults: a rank that is killed or hangs, a loss that is not finite, a damaged checkpoint.

``denoise train --inject kill:rank=1,step=37`` shows how a run deals with them. Each fault happens once.

A ``FaultInjector`` is a set of hooks: the loop calls ``before_step``, the training step ``corrupt_batch``, and the
checkpoint manager ``wrap_writer``. ``NO_FAULTS``, whose hooks do nothing, is the default everywhere.
"""

import os
import signal
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from denoise.errors import UsageError, nearest

KINDS = {
    "kill": "SIGKILL to a rank before a step, or to the driver (rank=driver)",
    "kill-writing": "SIGKILL to rank 0 in the middle of writing the checkpoint of a step",
    "term": "SIGTERM to a rank, or to the driver: save a checkpoint and stop",
    "hang": "a rank does not answer for some seconds",
    "nan": "the values of a rank's batch are NaN",
    "memory": "the memory of a rank's GPU is full",
    "corrupt-checkpoint": "one byte of the checkpoint of a step is wrong",
    "tracker-down": "MLflow does not answer for some seconds",
}
DRIVER = -1  # the rank of faults in the driver

Write = Callable[[Path], None]  # fills an empty folder with a checkpoint


@dataclass(frozen=True)
class Fault:
    """One fault: what, where and when."""

    kind: str
    step: int  # before this many steps are done; of a checkpoint: after them, or later
    rank: int = 0
    seconds: float = 3600.0  # hang and tracker-down


def parse_fault(text: str) -> Fault:
    """Return the fault that ``KIND:step=N,rank=R,seconds=S`` describes.

    Raises:
        UsageError: an unknown kind or key, or a value that is not a number.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"--inject {text}: {kind} is not a fault{nearest(kind, KINDS)}; use {', '.join(KINDS)}.")
    pairs = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    known = {field.name for field in fields(Fault)} - {"kind"}
    try:
        if not pairs.keys() <= known or "step" not in pairs:
            raise ValueError
        rank = DRIVER if pairs.get("rank") == "driver" else int(pairs.get("rank", 0))
        return Fault(kind, int(pairs["step"]), rank, float(pairs.get("seconds", Fault.seconds)))
    except ValueError:
        example = "kill:rank=1,step=37"
        raise UsageError(f"--inject {text} is not understood; write KIND:step=N,rank=R,seconds=S: {example}.") from None


class FaultInjector:
    """The faults of a run on one rank, as hooks.

    Args:
        faults: those of all ranks; the others' are ignored.
        rank: of this process; ``DRIVER`` in the driver.
        is_first_time: says of a fault whether it has not happened yet, over all restarts of the run.
    """

    def __init__(
        self,
        faults: Sequence[Fault] = (),
        rank: int = 0,
        is_first_time: Callable[[Fault], bool] = lambda fault: True,
    ) -> None:
        self.pending = [fault for fault in faults if fault.rank == rank]
        self.is_first_time = is_first_time

    def due(self, step: int, *kinds: str) -> list[Fault]:
        """Return the pending faults of these kinds that happen at ``step``; each is returned once."""
        due = [fault for fault in self.pending if fault.kind in kinds and step >= fault.step]
        self.pending = [fault for fault in self.pending if fault not in due]
        return [fault for fault in due if self.is_first_time(fault)]

    def before_step(self, step: int) -> None:
        """Kill, terminate or suspend this process if that is due before ``step``."""
        for fault in self.due(step, "kill", "term", "hang"):
            if fault.kind == "hang":
                time.sleep(fault.seconds)
            else:
                os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM)

    def corrupt_batch(self, step: int, views: MutableMapping[str, Tensor]) -> None:
        """Replace the values of a batch by NaN, in place, if that is due.

        Raises:
            torch.OutOfMemoryError: that is due.
        """
        if not self.pending:
            return
        for _ in self.due(step, "nan"):
            views.update({name: torch.full_like(view, float("nan")) for name, view in views.items()})
        for _ in self.due(step, "memory"):
            raise torch.OutOfMemoryError("injected")

    def wrap_writer(self, step: int, write: Write) -> Write:
        """Return ``write``, which writes the checkpoint of ``step``, or one that fails in its place if that is due."""
        if self.due(step, "kill-writing"):
            return _killed_while(write)
        return _damaged_after(write) if self.due(step, "corrupt-checkpoint") else write


NO_FAULTS = FaultInjector()


def _killed_while(write: Write) -> Write:
    def killed(folder: Path) -> None:
        write(folder)
        largest = _largest_file(folder)
        os.truncate(largest, largest.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    return killed


def _damaged_after(write: Write) -> Write:
    def damaged(folder: Path) -> None:
        write(folder)
        largest = _largest_file(folder)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(bytes(data))

    return damaged


def _largest_file(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)

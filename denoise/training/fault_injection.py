"""Faults on purpose: a rank that is killed or hangs, a loss that is not a number, a damaged checkpoint.

``denoise train --inject kill:rank=1,step=37`` shows what a run does then. Each fault strikes once.
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
    "term": "SIGTERM to a rank, or to the driver: save a checkpoint and leave",
    "hang": "a rank stops answering for some seconds",
    "nan": "the batch of a rank is not a number",
    "memory": "the memory of a rank's GPU is full",
    "corrupt-checkpoint": "a byte of the checkpoint of a step is wrong",
    "tracker-down": "MLflow does not answer for some seconds",
}
DRIVER = -1


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
        UsageError: another kind or key, or a value that is no number.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"--inject {text}: {kind} is no fault{nearest(kind, KINDS)}; use {', '.join(KINDS)}.")
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
    """The faults of a run on one rank.

    Args:
        chosen: the faults.
        rank: of this process; ``DRIVER`` in the driver.
        first: says of a fault whether it strikes for the first time, over all restarts of the run.
    """

    def __init__(
        self, chosen: Sequence[Fault] = (), rank: int = 0, first: Callable[[Fault], bool] = lambda fault: True
    ) -> None:
        self.chosen = [fault for fault in chosen if fault.rank == rank]
        self.first = first

    def due(self, step: int, *kinds: str) -> list[Fault]:
        """Return the faults of these kinds that strike now."""
        found = [fault for fault in self.chosen if fault.kind in kinds and step >= fault.step]
        self.chosen = [fault for fault in self.chosen if fault not in found]
        return [fault for fault in found if self.first(fault)]

    def before_step(self, step: int) -> None:
        """Let this process suffer what is due before a step."""
        for fault in self.due(step, "kill", "term", "hang"):
            if fault.kind == "hang":
                time.sleep(fault.seconds)
            else:
                os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM)

    def corrupt_batch(self, step: int, views: MutableMapping[str, Tensor]) -> None:
        """Make the batch of a step not a number, or its memory too much, if that is due."""
        if not self.chosen:
            return
        for _ in self.due(step, "nan"):
            views.update({name: torch.full_like(view, float("nan")) for name, view in views.items()})
        for _ in self.due(step, "memory"):
            raise torch.OutOfMemoryError("injected")

    def wrap_writer(self, step: int, write: Callable[[Path], None]) -> Callable[[Path], None]:
        """Return a way of writing the checkpoint after ``step`` steps that goes wrong, if that is due."""
        if self.due(step, "kill-writing"):
            return _killed_while(write)
        return _damaged_after(write) if self.due(step, "corrupt-checkpoint") else write


def _killed_while(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def killed(work: Path) -> None:
        write(work)
        last = max(work.iterdir(), key=lambda path: path.stat().st_size)
        os.truncate(last, last.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    return killed


def _damaged_after(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def damaged(work: Path) -> None:
        write(work)
        largest = max(work.iterdir(), key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(bytes(data))

    return damaged

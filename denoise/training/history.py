"""The books of a run: its history, the loss terms and samples since the last row, and how fast it goes."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from denoise import distributed
from denoise.config import Train
from denoise.data.loader import CropBatch
from denoise.errors import UserError
from denoise.training.checkpoint import RunProgress
from denoise.training.sample_log import SampleLog
from denoise.training.step import Terms

Metrics = dict[str, float]


class TrainingHistory:
    """What is known of a run while it goes on: the history, and the loss terms and samples since its last row.

    Sums are kept on the device: no step waits for the host.
    """

    def __init__(self, done: RunProgress, device: torch.device) -> None:
        self.device, self.history, self.log = device, list(done.history), SampleLog(done.samples)
        mine = done.sums if distributed.rank() == 0 else {}
        self.sums = {name: torch.tensor(value, device=device) for name, value in mine.items()}
        self.counted, self.skipped = done.counted, int(done.history[-1].get("skipped", 0)) if done.history else 0
        self.first_bad = torch.tensor(-1, device=device)  # step of this rank with a loss that is not finite

    def add(self, step: int, ours: CropBatch, terms: Terms | None) -> None:
        """Note what a step has learnt from and its terms, None where it was skipped."""
        self.log.add(step, ours.positions.numpy(), np.asarray(ours.samples))
        if terms is None:
            self.skipped += 1
            return
        self.counted += 1
        self.first_bad = torch.where((self.first_bad < 0) & ~torch.isfinite(terms["loss"]), step, self.first_bad)
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value

    def means(self, spec: Train, name: Callable[[int], str]) -> Metrics:
        """Return the means over all ranks since the last row.

        Raises:
            UserError: the loss of a step was not finite, or too many such steps were skipped.
        """
        means = {key: value / max(1, self.counted) for key, value in self._totals().items()}
        if self.skipped > spec.skip_nonfinite:
            raise UserError(
                f"the loss of {self.skipped} steps was not finite, more than the {spec.skip_nonfinite} of "
                f"train.skip_nonfinite; lower train.lr (it is {spec.lr:g})."
            )
        if not math.isfinite(means.get("loss", 0.0)):
            raise self._diverged(means["loss"], spec, name)
        return {**means, **({"skipped": float(self.skipped)} if self.skipped else {})}

    def close(self, row: Metrics) -> None:
        """Add a row to the history."""
        self.history.append(dict(row))
        self.sums, self.counted = {}, 0
        self.log.forget()

    def done(self, step: int) -> RunProgress:
        """Return what a checkpoint holds of it; every rank must ask."""
        return RunProgress(step, self.log.digest(), tuple(self.history), self._totals(), self.counted)

    def _totals(self) -> Metrics:
        names = sorted(self.sums)
        if not names:
            return {}
        totals = distributed.total(torch.stack([self.sums[name] for name in names]))
        return dict(zip(names, totals.tolist(), strict=True))

    def _diverged(self, loss: float, spec: Train, name: Callable[[int], str]) -> UserError:
        """Say which step it was, and which samples the ranks concerned had there."""
        steps = distributed.gathered(int(self.first_bad.item()))
        first = min((step for step in steps if step >= 0), default=-1)
        mine = self.log.of(first) if int(self.first_bad.item()) == first else []
        samples = distributed.union({sample: name(sample) for sample in mine})
        named = ", ".join(f"{sample} ({text})" for sample, text in sorted(samples.items()))
        return UserError(
            f"the loss is {loss} at step {first + 1}, on samples {named}: look at them, lower train.lr (it is "
            f"{spec.lr:g}), or let some such steps be skipped with train.skip_nonfinite."
        )


class Clock:
    """How fast it goes."""

    def __init__(self) -> None:
        self.before, self.at = 0, time.perf_counter()

    def rate(self, steps: int, batch_size: int) -> float:
        """Return the images per second since the last call, when ``steps`` steps have been taken in all."""
        now = time.perf_counter()
        rate = (steps - self.before) * batch_size / (now - self.at)
        self.before, self.at = steps, now
        return rate

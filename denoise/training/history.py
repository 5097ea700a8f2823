"""The history of a run: its rows of metrics, the loss terms and samples since the last row, and the throughput."""

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
    """What has happened so far in a run: the rows of metrics, and the loss terms and samples since the last row.

    Sums stay on the device, so that no step waits for the host.
    """

    def __init__(self, progress: RunProgress, device: torch.device) -> None:
        self.device, self.rows, self.log = device, list(progress.history), SampleLog(progress.samples)
        sums = progress.sums if distributed.rank() == 0 else {}  # those of all ranks together: they count once
        self.sums = {name: torch.tensor(value, device=device) for name, value in sums.items()}
        self.counted = progress.counted
        self.skipped = int(self.rows[-1].get("skipped", 0)) if self.rows else 0
        self.first_nonfinite = torch.tensor(-1, device=device)  # first step of this rank whose loss was not finite

    def record_step(self, step: int, batch: CropBatch, terms: Terms | None) -> None:
        """Record the samples of a step and the terms of its loss, None if the step was skipped."""
        self.log.add(step, batch.positions.numpy(), np.asarray(batch.samples))
        if terms is None:
            self.skipped += 1
            return
        self.counted += 1
        is_first = (self.first_nonfinite < 0) & ~torch.isfinite(terms["loss"])
        self.first_nonfinite = torch.where(is_first, step, self.first_nonfinite)
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value

    def means(self, spec: Train, name_of: Callable[[int], str]) -> Metrics:
        """Return the means of the loss terms over all ranks and the steps since the last row.

        Args:
            spec: says how many steps may be skipped.
            name_of: returns the name of a sample, for error messages.

        Raises:
            UserError: the loss of a step was not finite, or too many such steps were skipped.
        """
        means = {name: value / max(1, self.counted) for name, value in self._totals().items()}
        if self.skipped > spec.skip_nonfinite:
            raise UserError(
                f"the loss of {self.skipped} steps was not finite, more than the {spec.skip_nonfinite} of "
                f"train.skip_nonfinite; lower train.lr (it is {spec.lr:g})."
            )
        if not math.isfinite(means.get("loss", 0.0)):
            raise self._nonfinite_error(means["loss"], spec, name_of)
        return {**means, **({"skipped": float(self.skipped)} if self.skipped else {})}

    def add_row(self, row: Metrics) -> None:
        """Add a row of metrics, and start to sum up anew."""
        self.rows.append(dict(row))
        self.sums, self.counted = {}, 0
        self.log.forget()

    def progress(self, steps_done: int) -> RunProgress:
        """Return what a checkpoint holds of this history; every rank must call it."""
        return RunProgress(steps_done, self.log.digest(), tuple(self.rows), self._totals(), self.counted)

    def _totals(self) -> Metrics:
        names = sorted(self.sums)
        if not names:
            return {}
        totals = distributed.total(torch.stack([self.sums[name] for name in names]))
        return dict(zip(names, totals.tolist(), strict=True))

    def _nonfinite_error(self, loss: float, spec: Train, name_of: Callable[[int], str]) -> UserError:
        """Return an error that names the first step whose loss was not finite, and the samples of the ranks it hit."""
        first_here = int(self.first_nonfinite.item())
        first = min((step for step in distributed.gathered(first_here) if step >= 0), default=-1)
        samples_here = self.log.of(first) if first_here == first else []
        names = distributed.union({sample: name_of(sample) for sample in samples_here})
        listing = ", ".join(f"{sample} ({name})" for sample, name in sorted(names.items()))
        return UserError(
            f"the loss is {loss} at step {first + 1}, on samples {listing}: look at them, lower train.lr (it is "
            f"{spec.lr:g}), or let some such steps be skipped with train.skip_nonfinite."
        )


class Throughput:
    """Measures how many images are trained on each second."""

    def __init__(self) -> None:
        self.last_steps, self.last_time = 0, time.perf_counter()

    def images_per_second(self, steps: int, batch_size: int) -> float:
        """Return the images per second since the last call; ``steps`` have been done since the start."""
        now = time.perf_counter()
        rate = (steps - self.last_steps) * batch_size / (now - self.last_time)
        self.last_steps, self.last_time = steps, now
        return rate

"""Progress of a training run: the line that shows it, and the exception of a run that was asked to stop."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pipelines.console import progress

FIGURES = {"loss": "loss {:.5f}", "images_per_second": "{:.0f} images/s", "val_psnr": "val {:.2f} dB"}

ShowMetrics = Callable[[Mapping[str, float]], None]


class Stopped(SystemExit):
    """Training was asked to stop before its last step: it has saved a checkpoint, and can resume from there."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.message = f"stopped after {step} of {steps} steps; the same command goes on from there."


@contextmanager
def step_progress(name: str, steps: int) -> Iterator[ShowMetrics]:
    """Show how far a run is while the block runs; call what this yields with the metrics of each report."""
    step = 0.0
    with progress(f"train {name}", steps, "steps") as advance:

        def show(metrics: Mapping[str, float]) -> None:
            nonlocal step
            advance(metrics["step"] - step, _figures(metrics))
            step = metrics["step"]

        yield show


def _figures(metrics: Mapping[str, float]) -> str:
    """Return the figures at the end of a progress line; there is no loss where all steps were skipped."""
    return ", ".join(form.format(metrics[key]) for key, form in FIGURES.items() if key in metrics)

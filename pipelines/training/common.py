"""What training with Ray and without it share: leaving on SIGTERM, and the words of progress."""

import signal
from collections.abc import Mapping

PROFILE = "profile"  # folder of a run


class Stopped(SystemExit):
    """Training was told to leave by SIGTERM: it has saved a checkpoint and can go on from there."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.sentence = f"stopped after {step} of {steps} steps; the same command goes on from there."


def progress_note(metrics: Mapping[str, float]) -> str:
    """Return the figures that stand at the end of a progress line; no loss where all steps were skipped."""
    shown = {"loss": "loss {:.5f}", "images_per_second": "{:.0f} images/s", "val_psnr": "val {:.2f} dB"}
    return ", ".join(form.format(metrics[key]) for key, form in shown.items() if key in metrics)

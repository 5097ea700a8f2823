"""What training with Ray and without it share: leaving on SIGTERM, and the words of progress."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PROFILE = "profile"  # folder of a run


class Stopped(SystemExit):
    """Training was told to leave by SIGTERM: it has saved a checkpoint and can go on from there."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.sentence = f"stopped after {step} of {steps} steps; the same command goes on from there."


@contextmanager
def terminated() -> Iterator[threading.Event]:
    """Set an event when SIGTERM comes, instead of ending at once; only the main thread may say so."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def progress_note(metrics: Mapping[str, float]) -> str:
    """Return the figures that stand at the end of a progress line; no loss where all steps were skipped."""
    shown = {"loss": "loss {:.5f}", "images_per_second": "{:.0f} images/s", "val_psnr": "val {:.2f} dB"}
    return ", ".join(form.format(metrics[key]) for key, form in shown.items() if key in metrics)

"""What the driver of a training run hears and says while the workers train."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from denoise.config import Config
from denoise.training.fault_injection import FaultInjector
from pipelines.cluster.connect import room
from pipelines.console import progress, say
from pipelines.training.common import progress_note

OnValidation = Callable[[Mapping[str, float]], bool]

PROGRESS_SECONDS = 0.5
ROOM_SECONDS = 20.0  # without a word of the workers, after which to see whether the cluster has room for them


@dataclass(frozen=True)
class DriverHooks:
    """What hears of a run's steps in its driver."""

    on_validation: OnValidation  # of every validation
    waits: "CapacityNotice"
    faults: FaultInjector


@contextmanager
def follow_workers(
    channel: Any, name: str, config: Config, leave: threading.Event, hooks: DriverHooks
) -> Iterator[None]:
    """Show what the workers say while the block runs, and pass on the wish to leave."""
    import ray

    stop = threading.Event()

    def follow() -> None:
        with progress(f"train {name}", config.train.steps, "steps") as advance:
            seen, asked, ended = 0.0, False, False
            while not ended:
                ended = stop.wait(PROGRESS_SECONDS)  # and look once more: the last validation must be heard
                try:
                    if leave.is_set() and not asked:
                        asked = True
                        ray.get(channel.request_stop.remote())
                        say(f"{name}: told to leave; saving a checkpoint")
                    metrics, words, validated = ray.get(channel.take.remote())
                except ray.exceptions.RayError:  # the cluster is gone, which the run's own end tells
                    return
                for sentence in words:
                    say(f"{name}: {sentence}")
                for row in validated:
                    if hooks.on_validation(row):
                        leave.set()
                hooks.waits.check(bool(words) or metrics.get("step", 0) != seen)
                if metrics.get("step", 0) != seen:
                    advance(metrics["step"] - seen, progress_note(metrics))
                    seen = metrics["step"]
                    hooks.faults.before_step(int(seen))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


class CapacityNotice:
    """Says once that a run waits for room in the cluster: Ray itself waits in silence."""

    def __init__(self, name: str, config: Config, gpu: bool) -> None:
        self.name, self.config, self.gpu = name, config, gpu
        self.moved, self.said = time.monotonic(), False

    def check(self, moves: bool) -> None:
        """Note whether the run moves, and look for room when it has not for a while."""
        if moves:
            self.moved, self.said = time.monotonic(), False
        if self.said or time.monotonic() - self.moved < ROOM_SECONDS:
            return
        least = self.config.ray.min_workers or self.config.ray.workers
        found = room(self.config, self.gpu)
        if found < least:
            self.said = True
            say(
                f"{self.name}: waits, as the cluster has room for {found} of {least} workers; add machines, or stop "
                "this and lower ray.workers, ray.min_workers or ray.cpus_per_worker."
            )

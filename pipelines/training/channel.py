"""Messages between the driver of a run and its workers: the actors that carry them, and the driver's thread.

An actor is a process of its own, started for every run, which imports this file: it imports next to nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.console import say
from pipelines.training.progress import step_progress

if TYPE_CHECKING:
    from denoise.config import Config
    from denoise.training.fault_injection import Fault
    from pipelines.training.worker import WorkerTask

PROGRESS_SECONDS = 0.5  # between two looks of the driver into the channel
CAPACITY_SECONDS = 20.0  # without progress, after which to check whether the cluster has room for the workers

OnValidation = Callable[[Mapping[str, float]], bool]  # called with the metrics of a validation; true stops the run


class RunChannel:
    """A Ray actor that carries messages between the workers and the driver, on whichever hosts they run."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}  # the latest
        self.validations: list[dict[str, float]] = []
        self.messages: list[str] = []
        self.stopping = False
        self.injected: set[Fault] = set()
        self.failure, self.steps = "", 0

    def put_metrics(self, metrics: dict[str, float], validated: bool) -> None:
        """Leave the latest metrics for the driver; those of a validation are kept until it has read them."""
        self.metrics = metrics
        if validated:
            self.validations.append(metrics)

    def put_message(self, message: str) -> None:
        """Leave a message for the driver to print."""
        self.messages.append(message)

    def take(self) -> tuple[dict[str, float], list[str], list[dict[str, float]]]:
        """Return the latest metrics, and the messages and the metrics of validations since the last call."""
        messages, self.messages = self.messages, []
        validations, self.validations = self.validations, []
        return self.metrics, messages, validations

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and return."""
        self.stopping = True

    def stop_requested(self) -> bool:
        """Return whether the workers were asked to stop."""
        return self.stopping

    def first_time(self, fault: "Fault") -> bool:
        """Return whether a fault is injected for the first time, over all restarts of the workers."""
        known = fault in self.injected
        self.injected.add(fault)
        return not known

    def end(self, failure: str, steps: int) -> None:
        """Record how many steps are done at the end, or why the run cannot succeed; the first reason stays."""
        self.failure, self.steps = self.failure or failure, steps

    def ending(self) -> tuple[str, int]:
        """Return why the run cannot succeed, empty while there is no reason, and the steps done at the end."""
        return self.failure, self.steps


class PruneFlags:
    """A Ray actor that knows which runs side by side should stop, on whichever hosts they are."""

    def __init__(self) -> None:
        self.pruned: set[str] = set()

    def prune(self, trial_id: str) -> None:
        """Record that a run should stop."""
        self.pruned.add(trial_id)

    def is_pruned(self, trial_id: str) -> bool:
        """Return whether a run should stop."""
        return trial_id in self.pruned


@contextmanager
def follow_workers(task: "WorkerTask", gpu: bool, stop: threading.Event, on_validation: OnValidation) -> Iterator[None]:
    """In the driver: show what the workers report while the block runs, and ask them to stop once that is wanted.

    Args:
        task: what the workers do.
        gpu: whether each of them gets a GPU.
        stop: set by whoever wants the run to stop, and here where ``on_validation`` returns true.
        on_validation: called with the metrics of every validation.
    """
    import ray

    from denoise.training.fault_injection import DRIVER, FaultInjector

    name, channel, faults = task.name, task.channel, FaultInjector(task.faults, DRIVER)
    ended, notice = threading.Event(), CapacityNotice(name, task.config, gpu)

    def follow() -> None:
        step, stop_sent, last_turn = 0.0, False, False
        with step_progress(name, task.config.train.steps) as show:
            while not last_turn:
                last_turn = ended.wait(PROGRESS_SECONDS)  # and one turn more, for the last validation
                try:
                    if stop.is_set() and not stop_sent:
                        stop_sent = True
                        ray.get(channel.request_stop.remote())
                        say(f"{name}: asked to stop; saving a checkpoint")
                    metrics, messages, validations = ray.get(channel.take.remote())
                except ray.exceptions.RayError:  # the cluster is gone: the end of the run reports that
                    return
                for message in messages:
                    say(f"{name}: {message}")
                for row in validations:
                    if on_validation(row):
                        stop.set()
                advanced = metrics.get("step", 0) != step
                notice.check(bool(messages) or advanced)
                if advanced:
                    show(metrics)
                    step = metrics["step"]
                    faults.before_step(int(step))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


class CapacityNotice:
    """Says once that a run waits for room in the cluster: Ray itself waits in silence."""

    def __init__(self, name: str, config: "Config", gpu: bool) -> None:
        self.name, self.config, self.gpu = name, config, gpu
        self.advanced_at, self.notified = time.monotonic(), False

    def check(self, advanced: bool) -> None:
        """Record whether the run advances, and check the cluster's room when it has not for a while."""
        from pipelines.cluster.connect import worker_capacity

        if advanced:
            self.advanced_at, self.notified = time.monotonic(), False
        if self.notified or time.monotonic() - self.advanced_at < CAPACITY_SECONDS:
            return
        least = self.config.ray.min_workers or self.config.ray.workers
        workers = worker_capacity(self.config, self.gpu)
        if workers < least:
            self.notified = True
            say(
                f"{self.name}: waits, as the cluster has room for {workers} of {least} workers; add machines, or stop "
                "this and lower ray.workers, ray.min_workers or ray.cpus_per_worker."
            )

"""What the driver of a run on Ray Train does meanwhile: it shows what the workers report, and asks them to stop."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from denoise.config import Config
from pipelines.console import say
from pipelines.training.channel import RunMessages
from pipelines.training.progress import step_progress
from pipelines.training.worker import WorkerTask

PROGRESS_SECONDS = 0.5  # between two looks into the channel
CAPACITY_SECONDS = 20.0  # without progress, after which to check whether the cluster has room for the workers

OnValidation = Callable[[Mapping[str, float]], bool]  # called with the metrics of a validation; true stops the run


@contextmanager
def follow_workers(task: WorkerTask, stop: threading.Event, on_validation: OnValidation) -> Iterator[None]:
    """In the driver: show what the workers report while the block runs, and ask them to stop once that is wanted.

    Args:
        task: what the workers do.
        stop: set by whoever wants the run to stop, and here where ``on_validation`` returns true.
        on_validation: called with the metrics of every validation.
    """
    import ray

    from denoise.training.fault_injection import DRIVER, FaultInjector

    name, channel, faults = task.name, task.channel, FaultInjector(task.faults, DRIVER)
    ended, notice = threading.Event(), CapacityNotice(name, task.config)

    def follow() -> None:
        step, stop_sent, last_turn = 0.0, False, False
        with step_progress(name, task.config.train.steps) as show:
            while not last_turn:
                last_turn = ended.wait(PROGRESS_SECONDS)  # and one turn more, for the last validation
                try:
                    if stop.is_set() and not stop_sent:
                        stop_sent = True
                        channel.ask(RunMessages.request_stop)
                        say(f"{name}: asked to stop; saving a checkpoint")
                    metrics, messages, validations = channel.ask(RunMessages.take)
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

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config = name, config
        self.advanced_at, self.notified = time.monotonic(), False

    def check(self, advanced: bool) -> None:
        """Record whether the run advances, and check the cluster's room when it has not for a while."""
        from pipelines.cluster.workers import worker_capacity

        if advanced:
            self.advanced_at, self.notified = time.monotonic(), False
        if self.notified or time.monotonic() - self.advanced_at < CAPACITY_SECONDS:
            return
        least = self.config.ray.min_workers or self.config.ray.worker_count
        workers = worker_capacity(self.config)
        if workers < least:
            self.notified = True
            say(
                f"{self.name}: waits, as the cluster has room for {workers} of {least} workers; add machines, or stop "
                "this and lower ray.workers, ray.min_workers or ray.cpus_per_worker."
            )

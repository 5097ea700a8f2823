"""What Ray Train runs in every worker: one rank of a training run."""

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from denoise.errors import UserError
from denoise.training.fault_injection import Fault, FaultInjector
from pipelines.cluster.workers import use_assigned_device
from pipelines.storage.checkpoints import open_store
from pipelines.tracking.runs import RunSpec
from pipelines.training.channel import RunChannel, RunMessages
from pipelines.training.inputs import Part, open_datasets

if TYPE_CHECKING:
    from denoise.training.loop import Report

POLL_SECONDS = 0.5  # between two looks whether the driver asks the workers to stop
# That the last rows get to reach MLflow from rank 0: where the driver has the journal too it sends what is left.
LAST_SECONDS, SHARED_JOURNAL_SECONDS = 30.0, 3.0


@dataclass(frozen=True, repr=False)  # Ray Train shows the text of its arguments, and an address may hold a password
class WorkerTask:
    """What the driver hands to every worker of a run. Ray serialises it; all paths and addresses are absolute."""

    config: Config
    name: str  # of the run
    storage: str  # where its checkpoints are
    parts: tuple[Part, ...]  # the shards it reads
    provenance: Mapping[str, Any]  # recorded in its checkpoints
    training_images: bytes  # the file in its checkpoints that says which images it is trained on
    run_spec: RunSpec  # of its MLflow run
    journal: Path
    channel: RunChannel
    preemptible: bool  # whether the cluster may take machines away with notice
    faults: tuple[Fault, ...]  # injected on purpose
    profile: Path | None  # folder for a profile of some steps


def train_worker(arguments: Mapping[str, WorkerTask]) -> None:
    """Train on one rank; ``arguments`` is Ray's dict of arguments, with the task under "task"."""
    import ray
    import ray.train

    from denoise import distributed
    from denoise.training.checkpoint_manager import CheckpointManager
    from denoise.training.loop import train

    task = arguments["task"]
    config, channel, rank = task.config, task.channel, distributed.rank()
    if channel.ask(RunMessages.ending)[0]:
        return  # bad input does not get better by trying again
    use_assigned_device(config)
    hosts = distributed.union({rank: ray.util.get_node_ip_address()})
    if rank == 0:
        channel.send(RunMessages.put_message, f"workers: {len(hosts)}, on {', '.join(sorted(set(hosts.values())))}")
    faults = FaultInjector(task.faults, rank, lambda fault: channel.ask(RunMessages.first_time, fault))
    store = open_store(task.storage, task.name)

    def say_to_driver(message: str) -> None:
        channel.send(RunMessages.put_message, message)

    checkpoints = CheckpointManager(store, config.ray.keep_checkpoints, say_to_driver, faults)
    rank_zero = RankZero(task, faults) if rank == 0 else None
    with tempfile.TemporaryDirectory(prefix="denoise-") as folder:
        try:
            datasets = open_datasets(config, task.parts)
            steps = train(
                config,
                train_set=datasets["train"],
                val_set=datasets.get("val"),
                folder=Path(folder),
                report=_reporter(task, rank_zero, Path(folder)),
                checkpoints=checkpoints,
                provenance=task.provenance,
                training_images=task.training_images,
                stop_requested=rank_zero.stop.is_set if rank_zero else lambda: False,
                faults=faults,
                profile=task.profile,
            )
            if rank == 0:
                channel.ask(RunMessages.end, "", steps)
        except UserError as error:
            channel.ask(RunMessages.end, str(error), 0)
            raise
        finally:
            if rank_zero:
                rank_zero.close()


def _reporter(task: WorkerTask, rank_zero: "RankZero | None", folder: Path) -> "Report":
    """Return the ``report`` of the core's loop: rank 0 records every row.

    Ray itself gets none: its reports are a barrier of all ranks, and of ours nobody reads them. The loop saves a
    checkpoint at once where the report is true: where a host is about to be taken away.
    """
    options = task.config.train
    new_notice = _preemption_notice() if task.preemptible else lambda: False

    def report(metrics: dict[str, float]) -> bool:
        if rank_zero:
            validated = metrics["step"] % options.eval_every == 0 or metrics["step"] == options.steps
            rank_zero.record(metrics, folder, validated)
        return new_notice()

    return report


def _preemption_notice() -> Callable[[], bool]:
    """Return a function that says whether there is a new notice that hosts will be taken away (spot machines).

    The answer is the same on every rank, and every rank must ask.
    """
    import ray.train

    known = frozenset[str]()

    def new_notice() -> bool:
        nonlocal known
        notice = ray.train.get_preemption_info()
        before, known = known, frozenset(notice.preempted_node_ids if notice else ())
        return bool(known - before)

    return new_notice


class RankZero:
    """What only rank 0 does: it records metrics, and exchanges messages with the driver."""

    def __init__(self, task: WorkerTask, faults: FaultInjector) -> None:
        from pipelines.tracking.sidecar import SidecarLogger

        self.faults, self.channel = faults, task.channel
        self.logger = SidecarLogger(task.run_spec, task.journal)
        self.driver_has_journal = "://" not in task.storage  # and sends what is left
        self.stop, self.closed = threading.Event(), threading.Event()
        threading.Thread(target=self._poll, daemon=True).start()

    def record(self, metrics: Mapping[str, float], folder: Path, validated: bool) -> None:
        """Log the metrics, and the validation image if this step made one; the journal has them at once."""
        step = int(metrics["step"])
        for fault in self.faults.due(step, "tracker-down"):
            self.logger.inject_outage(fault.seconds)
        self.logger.log_metrics(step, {key: value for key, value in metrics.items() if key != "step"})
        image = folder / "images" / f"step-{step:06d}.png"
        if image.exists():
            self.logger.log_image("validation", image, step)
        self.channel.send(RunMessages.put_metrics, dict(metrics), validated)

    def close(self) -> None:
        """Write what has not been written yet."""
        self.closed.set()
        self.logger.close(SHARED_JOURNAL_SECONDS if self.driver_has_journal else LAST_SECONDS)

    def _poll(self) -> None:
        """Set ``stop`` once the driver asks for it."""
        while not self.closed.wait(POLL_SECONDS) and not self.stop.is_set():
            if self.channel.ask(RunMessages.stop_requested):
                self.stop.set()

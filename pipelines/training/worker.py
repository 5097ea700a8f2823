"""What Ray Train runs in every worker."""

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config, from_dict
from denoise.errors import UserError
from denoise.training.fault_injection import FaultInjector
from pipelines.storage.checkpoints import open_store
from pipelines.tracking.runs import RunSpec
from pipelines.training.inputs import open_collections

if TYPE_CHECKING:
    from denoise.training.loop import Report

LISTEN_SECONDS = 0.5  # between two looks whether the driver wants the workers to leave


def train_worker(settings: dict[str, Any]) -> None:
    """Train on one rank: what Ray Train runs in every worker."""
    import ray
    import ray.train
    import torch

    from denoise import distributed
    from denoise.training.checkpoint_manager import CheckpointManager
    from denoise.training.loop import train

    config, channel = from_dict(settings["config"]), settings["mailbox"]
    if ray.get(channel.ending.remote())[0]:
        return  # bad input does not get better by trying again
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
    first = distributed.rank() == 0
    hosts = distributed.union({distributed.rank(): ray.util.get_node_ip_address()})
    if first:
        channel.say.remote(f"workers: {len(hosts)}, on {', '.join(sorted(set(hosts.values())))}")
    faults = FaultInjector(
        settings["inject"], distributed.rank(), lambda fault: bool(ray.get(channel.first.remote(fault)))
    )
    store = open_store(settings["storage"], settings["name"])
    checkpoints = CheckpointManager(store, config.ray.keep_checkpoints, channel.say.remote, faults.wrap_writer)
    writer = RankZero(settings, faults) if first else None
    with tempfile.TemporaryDirectory(prefix="denoise-") as folder:
        try:
            sets = open_collections(config, settings["parts"])
            done = train(
                config,
                sets["train"],
                sets.get("val"),
                Path(folder),
                _reporter(writer, Path(folder), config, PreemptionNotices(settings["preemptible"])),
                checkpoints,
                settings["provenance"],
                writer.stop_requested.is_set if writer else lambda: False,
                faults,
                settings["profile"],
            )
            if first:
                ray.get(channel.end.remote("", done))
        except UserError as error:
            ray.get(channel.end.remote(str(error), 0))
            raise
        finally:
            if writer:
                writer.close()


class RankZero:
    """What only rank 0 does: MLflow, and words to and from the driver."""

    def __init__(self, settings: Mapping[str, Any], faults: FaultInjector) -> None:
        from pipelines.tracking.logger import MlflowLogger

        self.faults, self.down_until = faults, 0.0
        spec = RunSpec.from_dict(settings["run_spec"])
        self.log = MlflowLogger(spec, Path(settings["journal"]), down=lambda: time.monotonic() < self.down_until)
        self.channel = settings["mailbox"]
        self.stop_requested, self.closed = threading.Event(), threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def report(self, metrics: Mapping[str, float], folder: Path, validated: bool) -> None:
        """Record the metrics, and the validation image if this step made one; the journal keeps them at once."""
        step = int(metrics["step"])
        for fault in self.faults.due(step, "tracker-down"):
            self.down_until = time.monotonic() + fault.seconds
        self.log.log_metrics(step, {key: value for key, value in metrics.items() if key != "step"})
        image = folder / "images" / f"step-{step:06d}.png"
        if image.exists():
            self.log.log_image("validation", image, step)
        self.channel.put.remote(dict(metrics), validated)

    def close(self) -> None:
        """Write what is left."""
        self.closed.set()
        self.log.close()

    def _listen(self) -> None:
        """Hear whether the driver was told to leave."""
        import ray

        while not self.closed.wait(LISTEN_SECONDS) and not self.stop_requested.is_set():
            if ray.get(self.channel.stop_requested.remote()):
                self.stop_requested.set()


class PreemptionNotices:
    """Tells of machines that are about to be taken away, which a cloud does with its spot machines."""

    def __init__(self, possible: bool) -> None:
        self.possible, self.known = possible, frozenset[str]()

    def new(self) -> bool:
        """Say, alike on every rank, whether there is a new notice; every rank must ask."""
        import ray.train

        notice = ray.train.get_preemption_info() if self.possible else None
        before, self.known = self.known, frozenset(notice.preempted_node_ids if notice else ())
        return bool(self.known - before)


def _reporter(writer: RankZero | None, folder: Path, config: Config, notices: PreemptionNotices) -> "Report":
    """Return the ``report`` of the core's loop: rank 0 tells MLflow, every rank tells Ray when it has validated.

    Ray takes one report at each look of its controller and lets further ones wait: too slow for every row.
    """
    import ray.train

    def report(metrics: dict[str, float]) -> bool:
        validated = metrics["step"] % config.train.eval_every == 0 or metrics["step"] == config.train.steps
        if writer:
            writer.report(metrics, folder, validated)
        if validated:
            ray.train.report(metrics)
        return notices.new()

    return report

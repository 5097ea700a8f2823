"""What Ray Train runs in every worker."""

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config, from_dict
from denoise.errors import UserError
from denoise.training.fault_injection import Faults
from pipelines.storage.checkpoints import open_store
from pipelines.tracking.runs import Opening
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
    from denoise.training.checkpoint_manager import Checkpoints
    from denoise.training.loop import train

    config, mailbox = from_dict(settings["config"]), settings["mailbox"]
    if ray.get(mailbox.ending.remote())[0]:
        return  # bad input does not get better by trying again
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
    first = distributed.rank() == 0
    hosts = distributed.union({distributed.rank(): ray.util.get_node_ip_address()})
    if first:
        mailbox.say.remote(f"workers: {len(hosts)}, on {', '.join(sorted(set(hosts.values())))}")
    faults = Faults(settings["inject"], distributed.rank(), lambda fault: bool(ray.get(mailbox.first.remote(fault))))
    store = open_store(settings["storage"], settings["name"])
    checkpoints = Checkpoints(store, config.ray.keep_checkpoints, mailbox.say.remote, faults.tamper)
    writer = RankZero(settings, faults) if first else None
    with tempfile.TemporaryDirectory(prefix="denoise-") as folder:
        try:
            sets = open_collections(config, settings["parts"])
            done = train(
                config,
                sets["train"],
                sets.get("val"),
                Path(folder),
                _reporter(writer, Path(folder), config, Notices(settings["preemptible"])),
                checkpoints,
                settings["provenance"],
                writer.leaving.is_set if writer else lambda: False,
                faults,
                settings["profile"],
            )
            if first:
                ray.get(mailbox.end.remote("", done))
        except UserError as error:
            ray.get(mailbox.end.remote(str(error), 0))
            raise
        finally:
            if writer:
                writer.close()


class RankZero:
    """What only rank 0 does: MLflow, and words to and from the driver."""

    def __init__(self, settings: Mapping[str, Any], faults: Faults) -> None:
        from pipelines.tracking.logger import RunLog

        self.faults, self.down_until = faults, 0.0
        opening = Opening.from_dict(settings["opening"])
        self.log = RunLog(opening, Path(settings["journal"]), down=lambda: time.monotonic() < self.down_until)
        self.mailbox = settings["mailbox"]
        self.leaving, self.closed = threading.Event(), threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def report(self, metrics: Mapping[str, float], folder: Path, validated: bool) -> None:
        """Record the metrics, and the validation picture if this step made one; the journal keeps them at once."""
        step = int(metrics["step"])
        for fault in self.faults.due(step, "tracker-down"):
            self.down_until = time.monotonic() + fault.seconds
        self.log.log_metrics(step, {key: value for key, value in metrics.items() if key != "step"})
        picture = folder / "pictures" / f"step-{step:06d}.png"
        if picture.exists():
            self.log.log_picture("validation", picture, step)
        self.mailbox.put.remote(dict(metrics), validated)

    def close(self) -> None:
        """Write what is left."""
        self.closed.set()
        self.log.close()

    def _listen(self) -> None:
        """Hear whether the driver was told to leave."""
        import ray

        while not self.closed.wait(LISTEN_SECONDS) and not self.leaving.is_set():
            if ray.get(self.mailbox.leaving.remote()):
                self.leaving.set()


class Notices:
    """Tells of machines that are about to be taken away, which a cloud does with its spot machines."""

    def __init__(self, possible: bool) -> None:
        self.possible, self.known = possible, frozenset[str]()

    def new(self) -> bool:
        """Say, alike on every rank, whether there is a new notice; every rank must ask."""
        import ray.train

        notice = ray.train.get_preemption_info() if self.possible else None
        before, self.known = self.known, frozenset(notice.preempted_node_ids if notice else ())
        return bool(self.known - before)


def _reporter(writer: RankZero | None, folder: Path, config: Config, notices: Notices) -> "Report":
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

"""The train stage on Ray Train: DDP workers anywhere, one MLflow run, resumed by the same command."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config, flatten, from_dict, to_dict
from denoise.errors import UserError
from pipelines import tracking
from pipelines.cluster import ray_cluster
from pipelines.inputs import TrainingInputs, export_model, open_collections, provenance, training_inputs
from pipelines.logged_model import log_model
from pipelines.progress import progress

if TYPE_CHECKING:
    from ray.train import Checkpoint

PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    name: str
    folder: Path  # the model
    run_id: str  # in MLflow
    metrics: Mapping[str, float]  # of the last step


def train_on_ray(config: Config, name: str | None = None, out: Path | None = None) -> Trained:
    """Train on Ray as ``config`` says and export the model.

    The run is known by its name, by default a hash of all that decides the result: the same command resumes an
    interrupted run from its last checkpoint, and gives back a finished one without training again.

    Args:
        config: what to train, and where.
        name: of the run, to start afresh under, or to resume.
        out: the model folder; by default runs/NAME/model.

    Raises:
        UserError: bad input, or training failed for good.
    """
    from denoise.methods import with_net

    config = with_net(config)
    inputs = training_inputs(config, name)
    folder = out or Path("runs") / inputs.name / "model"
    uri = tracking.resolve_uri(config.tracking.uri, Path.cwd())
    run_id = tracking.open_run(
        uri,
        config.tracking.experiment,
        inputs.name,
        tags={
            "mlflow.source.name": "denoise train",
            "method": config.method.name,
            "noise": config.noise,
            "data": ",".join(config.data.train),
            **inputs.versions,
        },
        params=flatten(to_dict(config)),
        datasets=[(part.name, part.split, part.digest, part.place) for part in inputs.parts],
    )
    with _final_status(uri, run_id):
        last = _finished(config, inputs.name)
        if last is not None:
            metrics = export_model(last, folder)
        else:
            with ray_cluster(config), _fit(config, inputs, uri, run_id).as_directory() as checkpoint:
                metrics = export_model(Path(checkpoint), folder)
        log_model(uri, run_id, folder, inputs.example(config), _final_figures(metrics))
    return Trained(inputs.name, folder, run_id, metrics)


@contextmanager
def _final_status(uri: str, run_id: str) -> Iterator[None]:
    """Give the MLflow run the status that the block ended with."""
    try:
        yield
    except BaseException as error:
        with suppress(UserError):  # an MLflow that is down must not hide why training ended
            tracking.finish_run(uri, run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracking.finish_run(uri, run_id, "FINISHED")


def _finished(config: Config, name: str) -> Path | None:
    """Return the last checkpoint of a run that finished in a local storage: no cluster is needed to give it back."""
    from denoise.checkpoint import checkpoint_name, damage

    folder = Path(config.ray.storage) / name / checkpoint_name(config.train.steps)
    return folder if folder.is_dir() and not damage(folder) else None


def _fit(config: Config, inputs: TrainingInputs, uri: str, run_id: str) -> "Checkpoint":
    """Train on the connected cluster and return the last checkpoint."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    gpu = _use_gpu(config)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": to_dict(config),
            "parts": [part.as_dict() for part in inputs.parts],
            "provenance": provenance(inputs),
            "uri": uri,
            "run_id": run_id,
            "mailbox": mailbox,
        },
        scaling_config=ScalingConfig(
            num_workers=config.ray.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": config.ray.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=inputs.name,
            storage_path=_storage(config.ray.storage),
            failure_config=FailureConfig(max_failures=config.ray.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.ray.keep_checkpoints),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with _shown(mailbox, f"train {inputs.name}", config.train.steps):
        try:
            with _own_interrupt():
                result = trainer.fit()
        except Exception as error:
            raise _told(mailbox, inputs.name, error) from error
    message = ray.get(mailbox.failure.remote())
    if message:
        raise UserError(message)
    if result.checkpoint is None:
        raise UserError(f"training run {inputs.name} ended without a checkpoint in {config.ray.storage}.")
    return result.checkpoint


def train_worker(settings: dict[str, Any]) -> None:
    """Train on one rank: what Ray Train runs in every worker."""
    import ray
    import ray.train
    import torch

    from denoise import distributed
    from denoise.train import train

    config, mailbox = from_dict(settings["config"]), settings["mailbox"]
    if ray.get(mailbox.failure.remote()):
        return  # bad input does not get better by trying again
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
    resume = ray.train.get_checkpoint()
    writer = RankZero(settings) if distributed.rank() == 0 else None
    with tempfile.TemporaryDirectory(prefix="denoise-") as folder:
        try:
            sets = open_collections(config, settings["parts"])
            report = _reporter(writer, Path(folder))
            with _as_folder(resume) as checkpoint:
                train(config, sets["train"], sets.get("val"), Path(folder), report, checkpoint, settings["provenance"])
        except UserError as error:
            ray.get(mailbox.fail.remote(str(error)))
            raise
        finally:
            if writer:
                writer.log.close()


class RankZero:
    """What only rank 0 does with a report: MLflow, and the word to the driver's progress bar."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from pipelines.run_log import RunLog

        self.log = RunLog(settings["uri"], settings["run_id"])
        self.mailbox = settings["mailbox"]

    def report(self, metrics: Mapping[str, float], folder: Path) -> None:
        """Record the metrics, and the validation picture if this step made one."""
        step = int(metrics["step"])
        self.log.log_metrics(step, {key: value for key, value in metrics.items() if key != "step"})
        picture = folder / "pictures" / f"step-{step:06d}.png"
        if picture.exists():
            self.log.log_picture("validation", picture, step)
        self.log.flush()
        self.mailbox.put.remote(dict(metrics))


class Mailbox:
    """A Ray actor that carries words from the workers to the driver, whichever machines they run on."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.message = ""

    def put(self, metrics: dict[str, float]) -> None:
        """Leave the latest metrics."""
        self.latest = metrics

    def take(self) -> dict[str, float]:
        """Return the latest metrics."""
        return self.latest

    def fail(self, message: str) -> None:
        """Say that the run cannot succeed, and why; the first reason stays."""
        self.message = self.message or message

    def failure(self) -> str:
        """Return the reason why the run cannot succeed, empty while there is none."""
        return self.message


def _reporter(writer: RankZero | None, folder: Path) -> Any:
    """Return the ``report`` of the core's loop: every rank tells Ray, rank 0 also tells MLflow."""
    import ray.train

    def report(metrics: dict[str, float], checkpoint: Path | None) -> None:
        if writer:
            writer.report(metrics, folder)
        if checkpoint is None:
            ray.train.report(metrics)
            return
        written = ray.train.Checkpoint.from_directory(checkpoint) if checkpoint.is_dir() else None  # on rank 0
        ray.train.report(metrics, checkpoint=written, checkpoint_dir_name=checkpoint.name)
        shutil.rmtree(checkpoint, ignore_errors=True)

    return report


@contextmanager
def _as_folder(checkpoint: Any) -> Iterator[Path | None]:
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


@contextmanager
def _shown(mailbox: Any, title: str, steps: int) -> Iterator[None]:
    """Show the run's progress while the block runs, from what the workers leave in the mailbox."""
    import ray

    stop = threading.Event()

    def follow() -> None:
        with progress(title, steps, "steps") as advance:
            seen = 0.0
            while not stop.wait(PROGRESS_SECONDS):
                metrics = ray.get(mailbox.take.remote())
                if metrics.get("step", 0) != seen:
                    note = f"loss {metrics['loss']:.5f}, {metrics['images_per_second']:.0f} images/s"
                    if "val_psnr" in metrics:
                        note += f", val {metrics['val_psnr']:.2f} dB"
                    advance(metrics["step"] - seen, note)
                    seen = metrics["step"]

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt again: Ray Train ends the run, then leaves with SystemExit."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _told(mailbox: Any, name: str, error: Exception) -> UserError:
    import ray

    message = ray.get(mailbox.failure.remote())
    if message:
        return UserError(message)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return UserError(
        f"training run {name} failed for good ({reason}); the same command resumes from its last checkpoint."
    )


def _use_gpu(config: Config) -> bool:
    import ray

    if config.ray.gpu == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) >= config.ray.workers)
    return config.ray.gpu == "yes"


def _storage(storage: str) -> str:
    return storage if "://" in storage else os.path.abspath(storage)  # noqa: PTH100 - may not exist yet


def _final_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key in ("loss", "val_psnr", "val_ssim")}

"""One training of many, in a process that has trained others before: a trial of a sweep, a run of a study.

A run of one worker trains right here, on the core's loop alone. One of several workers is a Ray Train run, for which
this process waits.
"""

import gc
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from denoise.errors import UserError, first_line
from pipelines.cluster.workers import use_assigned_device
from pipelines.console import say
from pipelines.storage.checkpoints import open_store
from pipelines.tracking.lifecycle import journal_folder, tracked_run
from pipelines.tracking.runs import RunSpec
from pipelines.training.driver import OnValidation
from pipelines.training.inputs import TrainingInputs, open_datasets, provenance, training_inputs
from pipelines.training.named_run import continue_run
from pipelines.training.on_ray import finished, fit, run_spec
from pipelines.training.progress import Stopped

if TYPE_CHECKING:
    from denoise.training.checkpoint_manager import CheckpointStore
    from denoise.training.loop import Report
    from pipelines.tracking.logger import MlflowLogger


class MemoryFullError(UserError):
    """Training ran out of memory: what holds it may stay in this process, which should not train again."""


def train_trial(
    config: Config, name: str, tags: Mapping[str, object], on_validation: OnValidation, messages: Any
) -> Mapping[str, float]:
    """Train one run of a sweep's trial, with the resources of this process or the connected cluster's.

    The run has checkpoints and an MLflow run of its own, but its model is left in the last checkpoint.

    Args:
        config: what to train, and where.
        name: of the run; the same one resumes it.
        tags: of its MLflow run.
        on_validation: called with the metrics of every validation as it happens; true stops the run.
        messages: handle of the sweep's MessagesActor.

    Returns:
        The metrics of the last step.

    Raises:
        UserError: bad input, or training failed for good.
        Stopped: ``on_validation`` returned true; a checkpoint has been saved.
    """
    from denoise.methods import with_net
    from denoise.training.checkpoint import read_history

    config = with_net(config)
    store = open_store(config.ray.storage, name)
    inputs = continue_run(config, training_inputs(config, name), store)
    journal = journal_folder(config.ray.storage, name)
    with tracked_run(run_spec(config, inputs, tags), journal) as run:
        if not finished(config, store):
            if config.ray.worker_count == 1:
                _fit_here(config, inputs, store, run.spec, journal, on_validation)
            else:
                fit(config, inputs, run.spec, journal, messages=messages, on_validation=on_validation)
        with store.open(store.names()[-1]) as last:
            return dict(read_history(last)[-1])


def _fit_here(
    config: Config,
    inputs: TrainingInputs,
    store: "CheckpointStore",
    spec: RunSpec,
    journal: Path,
    on_validation: OnValidation,
) -> None:
    """Train in this process until the last step is done, or until ``on_validation`` returns true.

    Raises:
        UserError: bad input, or no memory left.
        Stopped: it was asked to stop; a checkpoint has been saved.
    """
    import torch

    from denoise.training.checkpoint_manager import CheckpointManager
    from denoise.training.loop import train
    from pipelines.tracking.logger import MlflowLogger

    use_assigned_device(config)
    datasets, stop = open_datasets(config, inputs.parts), threading.Event()
    logger = MlflowLogger(spec, journal)
    with tempfile.TemporaryDirectory(prefix="denoise-") as folder:
        try:
            steps = train(
                config,
                train_set=datasets["train"],
                val_set=datasets.get("val"),
                folder=Path(folder),
                report=_reporter(config, logger, Path(folder), on_validation, stop),
                checkpoints=CheckpointManager(
                    store, config.ray.keep_checkpoints, lambda message: say(f"{inputs.name}: {message}")
                ),
                provenance=provenance(inputs),
                training_images=inputs.training_images(config),
                stop_requested=stop.is_set,
            )
        except (UserError, torch.OutOfMemoryError, MemoryError) as error:
            raise _plain(error) from None
        finally:
            logger.close()
            _forget_run()
    if steps < config.train.steps:
        raise Stopped(steps, config.train.steps)


def _reporter(
    config: Config, logger: "MlflowLogger", folder: Path, on_validation: OnValidation, stop: threading.Event
) -> "Report":
    """Return the ``report`` of the core's loop: it logs every row, and asks after a validation whether to go on."""

    def report(metrics: dict[str, float]) -> None:
        step = int(metrics["step"])
        logger.log_metrics(step, {key: value for key, value in metrics.items() if key != "step"})
        image = folder / "images" / f"step-{step:06d}.png"
        if image.exists():
            logger.log_image("validation", image, step)
        validated = step % config.train.eval_every == 0 or step == config.train.steps
        if validated and on_validation(metrics):
            stop.set()

    return report


def _plain(error: Exception) -> UserError:
    """Return what to tell the user of a failure; the core's own sentence about a full GPU hides torch's exception."""
    import torch

    full = (torch.OutOfMemoryError, MemoryError)
    if isinstance(error, full):
        return MemoryFullError(f"out of memory ({first_line(error)}); lower train.batch_size or train.crop.")
    return MemoryFullError(str(error)) if isinstance(error.__context__, full) else UserError(str(error))


def _forget_run() -> None:
    """Give back what a training leaves in a process: compiled code, and the memory that torch keeps of a GPU.

    The rest is set anew for every training: number of threads, torch's switches for a device, the generator's seed.
    """
    import torch

    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()

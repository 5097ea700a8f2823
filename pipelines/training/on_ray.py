"""The train stage on Ray Train: DDP workers anywhere, one MLflow run, resumed by the same command."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config, flatten, recorded
from denoise.errors import UserError
from denoise.files import require_name
from denoise.redaction import HIDDEN, without_passwords
from denoise.training.fault_injection import Fault
from pipelines.cluster.connect import ray_address, ray_cluster
from pipelines.cluster.workers import fit_to_cluster, worker_needs
from pipelines.console import say
from pipelines.signals import plain_interrupt, stop_event_on_sigterm
from pipelines.storage.checkpoints import absolute, open_store
from pipelines.tracking import client as tracking
from pipelines.tracking.journal import Journal
from pipelines.tracking.lifecycle import journal_folder, tracked_run
from pipelines.tracking.runs import DataUse, RunSpec
from pipelines.training.channel import RunChannel, RunMessages, start_messages
from pipelines.training.driver import OnValidation, follow_workers
from pipelines.training.inputs import (
    PROFILE,
    TrainingInputs,
    export_model,
    provenance,
    require_replaceable,
    training_inputs,
)
from pipelines.training.named_run import continue_run, refuse_mlflow_run
from pipelines.training.noise_check import warn_of_noise
from pipelines.training.progress import Stopped
from pipelines.training.teacher import with_teacher
from pipelines.training.worker import WorkerTask, train_worker

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from denoise.training.checkpoint_manager import CheckpointStore

RESIZE_SECONDS = 30.0  # between two looks whether there is room for more workers
# How often Ray Train's controller looks after its workers: its default of 2 s would hold up the end of short runs, and
# with thousands of workers it would do nothing else.
POLL_SECONDS, POLLS_PER_SECOND = 0.5, 250


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run."""

    name: str
    folder: Path  # the model
    run_id: str | None  # in MLflow, None while that does not answer
    metrics: Mapping[str, float]  # of the last step


def train_on_ray(
    config: Config,
    name: str | None = None,
    out: Path | None = None,
    faults: Sequence[Fault] = (),
    profile: bool = False,
) -> TrainedRun:
    """Train on Ray as ``config`` says and export the model.

    The run is known by its name, by default a hash of all that decides the result: the same command resumes an
    interrupted run from its last checkpoint, and gives back a finished one without training again.

    Args:
        config: what to train, and where.
        name: of the run, to start afresh under, or to resume.
        out: the model folder; by default runs/NAME/model.
        faults: what goes wrong on purpose.
        profile: write a profile of some steps to runs/NAME/profile of the machine of rank 0.

    Raises:
        UserError: bad input, or training failed for good.
        Stopped: SIGTERM came; a checkpoint has been saved.
    """
    from denoise.methods import with_net

    config, name = with_net(with_teacher(config)), name and require_name(name, "--name")
    inputs = training_inputs(config, name)
    store, own_folder = open_store(config.ray.storage, inputs.name), Path("runs") / inputs.name / "model"
    if name:
        inputs = continue_run(config, inputs, store, own_folder)
    folder = out or own_folder
    require_replaceable(folder)
    spec = run_spec(config, inputs, {"mlflow.source.name": "denoise train"})
    if name:
        refuse_mlflow_run(config, spec)
    journal = journal_folder(config.ray.storage, inputs.name)
    with tracked_run(spec, journal) as run:
        if not finished(config, store):
            warn_of_noise(config, inputs)
            with ray_cluster(config) as dashboard:
                _announce(run.spec, config.ray.storage, dashboard)
                fit(fit_to_cluster(config), inputs, run.spec, journal, faults=faults, profile=profile)
        metrics = export_model(config, store, folder)
        Journal(journal).set_model(folder, _final_figures(metrics), inputs.example(config))
    return TrainedRun(inputs.name, folder, run.synced.run_id if run.synced else None, metrics)


def run_spec(config: Config, inputs: TrainingInputs, tags: Mapping[str, object]) -> RunSpec:
    """Return the definition of a training's MLflow run."""
    return RunSpec(
        tracking.resolve_uri(config.tracking.uri, Path.cwd()),
        config.tracking.experiment,
        inputs.name,
        tags={
            "method": config.method.name,
            "noise": config.noise,
            "data": ",".join(config.data.train),
            **inputs.versions,
            **tags,
        },
        params=flatten(recorded(config)),
        datasets=tuple(DataUse(part.name, part.split, part.digest, part.place) for part in inputs.parts),
    )


def finished(config: Config, store: "CheckpointStore") -> bool:
    """Return whether the last checkpoint of the run is there: its model is given back without a cluster."""
    from denoise.training.checkpoint import checkpoint_name, damage

    last = checkpoint_name(config.train.steps)
    if last not in store.names():
        return False
    with store.open(last) as folder:
        return not damage(folder)


def _announce(spec: RunSpec, storage: str, dashboard: str) -> None:
    """Print where the run can be watched, and the command that resumes it."""
    ray_page = f", Ray at http://{dashboard}" if dashboard else ""
    say(f"{spec.name}: MLflow at {without_passwords(spec.uri)}{ray_page}, checkpoints in {storage}")
    command = shlex.join(["denoise", *map(without_passwords, sys.argv[1:])])
    say(f"{spec.name}: to resume it: {command}{' (with the password for ***)' * (HIDDEN in command)}")


def fit(
    config: Config,
    inputs: TrainingInputs,
    spec: RunSpec,
    journal: Path,
    *,
    faults: Sequence[Fault] = (),
    profile: bool = False,
    messages: Any = None,
    on_validation: OnValidation = lambda row: False,
) -> None:
    """Train on the connected cluster until the last step is done, or until ``on_validation`` returns true.

    ``fit_to_cluster`` has made ``config``; ``messages`` is the handle of a sweep's MessagesActor.

    Raises:
        UserError: bad input, or more failures than allowed.
        Stopped: it was asked to stop; a checkpoint has been saved.
    """
    channel = RunChannel(messages or start_messages())
    task = WorkerTask(
        config=config,
        name=inputs.name,
        storage=absolute(config.ray.storage),
        parts=tuple(inputs.parts),
        provenance=provenance(inputs),
        training_images=inputs.training_images(config),
        run_spec=spec,
        journal=journal,
        channel=channel,
        preemptible=bool(ray_address(config)),
        faults=tuple(faults),
        profile=(Path("runs") / inputs.name / PROFILE).absolute() if profile else None,
    )
    poll_seconds = max(POLL_SECONDS, config.ray.worker_count / POLLS_PER_SECOND)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(poll_seconds))
    trainer = _trainer(task, in_sweep=messages is not None)
    with channel, stop_event_on_sigterm() as stop, follow_workers(task, stop, on_validation):
        try:
            with plain_interrupt():
                trainer.fit()
        except Exception as error:
            raise _final_error(channel, inputs.name, error) from error
        failure, steps = channel.ask(RunMessages.ending)
    if failure:
        raise UserError(failure)
    if steps < config.train.steps:
        raise Stopped(steps, config.train.steps)


def _trainer(task: WorkerTask, in_sweep: bool) -> "TorchTrainer":
    """Return Ray's trainer, with the workers that the configuration asks for."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import LoggingConfig

    options, workers = task.config.ray, task.config.ray.worker_count
    return _trainer_class(in_sweep)(
        train_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(timeout_s=int(options.timeout)),
        scaling_config=ScalingConfig(
            num_workers=workers if options.min_workers is None else (options.min_workers, workers),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=options.gpu == "yes",
            resources_per_worker=worker_needs(task.config),
        ),
        run_config=RunConfig(
            name=task.name,
            storage_path=task.storage,
            failure_config=FailureConfig(max_failures=options.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _trainer_class(in_sweep: bool) -> "type[TorchTrainer]":
    """Return Ray's trainer without processes that it starts for every run and that ours do not need.

    One deals out Ray Data's data sets. The other frees the run's processors where its controller dies alone: Ray itself
    does that as the driver ends, which for a trial is the end of its whole sweep.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    unused = (DatasetsCallback,) if in_sweep else (DatasetsCallback, PlacementGroupCleanerCallback)

    class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray does not type it
        def _create_default_callbacks(self) -> list[Any]:  # private, but Ray has no other way to leave them out
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    return Trainer


def _final_error(channel: RunChannel, name: str, error: Exception) -> UserError:
    """Return what to tell the user of a run that Ray has given up: a worker's own reason, where there is one."""
    failure, _ = channel.ask(RunMessages.ending)
    if failure:
        return UserError(failure)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return UserError(
        f"training run {name} failed for good ({reason}); the same command resumes from its last checkpoint."
    )


def _final_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that MLflow shows beside the model."""
    return {key: value for key, value in metrics.items() if key in ("loss", "val_psnr", "val_ssim")}

"""The train stage on Ray Train: DDP workers anywhere, one MLflow run, resumed by the same command."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config, flatten, to_dict
from denoise.errors import UserError
from denoise.training.fault_injection import DRIVER, Fault, FaultInjector
from pipelines.cluster.connect import ray_address, ray_cluster, this_node, use_gpu, worker_needs
from pipelines.console import say
from pipelines.signals import plain_interrupt, stop_event_on_sigterm
from pipelines.storage.checkpoints import absolute, open_store
from pipelines.tracking import client as tracking
from pipelines.tracking.journal import Journal
from pipelines.tracking.lifecycle import journal_folder, tracked_run
from pipelines.tracking.runs import DataUse, RunSpec
from pipelines.training.channel import RunChannel
from pipelines.training.common import PROFILE, Stopped
from pipelines.training.driver import CapacityNotice, DriverHooks, OnValidation, follow_workers
from pipelines.training.inputs import TrainingInputs, export_model, provenance, training_inputs
from pipelines.training.worker import train_worker

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from denoise.training.checkpoint_manager import CheckpointStore

RESIZE_SECONDS = 30.0  # between two looks whether there is room for more workers


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    name: str
    folder: Path  # the model
    run_id: str | None  # in MLflow, None while that does not answer
    metrics: Mapping[str, float]  # of the last step


def train_on_ray(
    config: Config,
    name: str | None = None,
    out: Path | None = None,
    inject: "Sequence[Fault]" = (),
    profile: bool = False,
) -> Trained:
    """Train on Ray as ``config`` says and export the model.

    The run is known by its name, by default a hash of all that decides the result: the same command resumes an
    interrupted run from its last checkpoint, and gives back a finished one without training again.

    Args:
        config: what to train, and where.
        name: of the run, to start afresh under, or to resume.
        out: the model folder; by default runs/NAME/model.
        inject: what goes wrong on purpose.
        profile: write a profile of some steps to runs/NAME/profile of the machine of rank 0.

    Raises:
        UserError: bad input, or training failed for good.
        Stopped: SIGTERM came; a checkpoint has been saved.
    """
    from denoise.methods import with_net

    config = with_net(config)
    inputs = training_inputs(config, name)
    folder = out or Path("runs") / inputs.name / "model"
    spec = _run_spec(config, inputs, {"mlflow.source.name": "denoise train"})
    journal = journal_folder(config.ray.storage, inputs.name)
    with tracked_run(spec, journal) as run:
        store = open_store(config.ray.storage, inputs.name)
        if not _finished(config, store):
            with ray_cluster(config) as dashboard:
                _announce(run.spec, config.ray.storage, dashboard)
                _fit(config, inputs, run.spec, journal, inject, profile)
        metrics = export_model(config, store, folder)
        Journal(journal).set_model(folder, _final_figures(metrics), inputs.example(config))
    return Trained(inputs.name, folder, run.synced.run_id if run.synced else None, metrics)


def train_part(
    config: Config, name: str, tags: Mapping[str, object], on_validation: OnValidation
) -> Mapping[str, float]:
    """Train on the connected cluster as a part of something larger, and return the figures of the last step.

    The run has checkpoints and an MLflow run of its own, but its model is left in the last checkpoint.

    Args:
        config: what to train, and where.
        name: of the run; the same one resumes it.
        tags: of its MLflow run.
        heed: told the figures of every validation as it happens; where it answers yes, training leaves.

    Raises:
        UserError: bad input, or training failed for good.
        Stopped: ``heed`` wanted it; a checkpoint has been saved.
    """
    from denoise.methods import with_net
    from denoise.training.checkpoint import read_history

    config = with_net(config)
    inputs = training_inputs(config, name)
    journal = journal_folder(config.ray.storage, name)
    with tracked_run(_run_spec(config, inputs, tags), journal) as run:
        store = open_store(config.ray.storage, name)
        if not _finished(config, store):
            _fit(config, inputs, run.spec, journal, (), False, on_validation)
        with store.open(store.names()[-1]) as last:
            return dict(read_history(last)[-1])


def _run_spec(config: Config, inputs: TrainingInputs, tags: Mapping[str, object]) -> RunSpec:
    """Return what opens the MLflow run of a training."""
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
        params=flatten(to_dict(config)),
        datasets=tuple(DataUse(part.name, part.split, part.digest, part.place) for part in inputs.parts),
    )


def _announce(spec: RunSpec, storage: str, dashboard: str) -> None:
    """Say where the run can be seen, and what resumes it."""
    seen = f", Ray at http://{dashboard}" if dashboard else ""
    say(f"{spec.name}: MLflow at {tracking.without_password(spec.uri)}{seen}, checkpoints in {storage}")
    say(f"{spec.name}: to resume it: {shlex.join(['denoise', *sys.argv[1:]])}")


def _finished(config: Config, store: "CheckpointStore") -> bool:
    """Say whether the last checkpoint of the run is there: no cluster is needed to give its model back."""
    from denoise.training.checkpoint import checkpoint_name, damage

    last = checkpoint_name(config.train.steps)
    if last not in store.names():
        return False
    with store.open(last) as folder:
        return not damage(folder)


def _fit(
    config: Config,
    inputs: TrainingInputs,
    spec: RunSpec,
    journal: Path,
    inject: "Sequence[Fault]",
    profile: bool,
    on_validation: OnValidation = lambda row: False,
) -> None:
    """Train on the connected cluster until the last step is done, or ``heed``, told every validation, answers yes.

    Raises:
        UserError: bad input, or more failures than allowed.
        Stopped: it was told to stop; a checkpoint has been saved.
    """
    import ray

    channel = ray.remote(num_cpus=0, scheduling_strategy=this_node())(RunChannel).remote()
    gpu = use_gpu(config)
    work = {
        "config": to_dict(config),
        "name": inputs.name,
        "storage": absolute(config.ray.storage),
        "parts": [part.as_dict() for part in inputs.parts],
        "provenance": provenance(inputs),
        "run_spec": spec.as_dict(),
        "journal": str(journal),
        "mailbox": channel,
        "preemptible": bool(ray_address(config)),
        "inject": list(inject),
        "profile": (Path("runs") / inputs.name / PROFILE).absolute() if profile else None,
    }
    trainer = _trainer(config, inputs.name, gpu, work)
    hear = DriverHooks(on_validation, CapacityNotice(inputs.name, config, gpu), FaultInjector(inject, DRIVER))
    with stop_event_on_sigterm() as stop, follow_workers(channel, inputs.name, config, stop, hear):
        try:
            with plain_interrupt():
                trainer.fit()
        except Exception as error:
            raise _told(channel, inputs.name, error) from error
    message, done = ray.get(channel.ending.remote())
    if message:
        raise UserError(message)
    if done < config.train.steps:
        raise Stopped(done, config.train.steps)


def _trainer(config: Config, name: str, gpu: bool, work: dict[str, Any]) -> "TorchTrainer":
    """Return Ray's trainer of ``work`` on the workers that the configuration asks for."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    most, least = config.ray.workers, config.ray.min_workers
    return TorchTrainer(
        train_worker,
        train_loop_config=work,
        torch_config=TorchConfig(timeout_s=int(config.ray.timeout)),
        scaling_config=ScalingConfig(
            num_workers=most if least is None else (least, most),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=gpu,
            resources_per_worker=worker_needs(config, gpu),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=absolute(config.ray.storage),
            failure_config=FailureConfig(max_failures=config.ray.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _told(channel: Any, name: str, error: Exception) -> UserError:
    import ray

    message, _ = ray.get(channel.ending.remote())
    if message:
        return UserError(message)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return UserError(
        f"training run {name} failed for good ({reason}); the same command resumes from its last checkpoint."
    )


def _final_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key in ("loss", "val_psnr", "val_ssim")}

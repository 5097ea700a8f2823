"""Training without Ray: one process, or the processes that ``torchrun`` started."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.config import Config
from denoise.documents import parse_json
from denoise.errors import UserError
from denoise.files import json_line, require_name
from pipelines.console import say
from pipelines.signals import stop_event_on_sigterm
from pipelines.training.inputs import (
    PROFILE,
    export_model,
    open_datasets,
    provenance,
    require_replaceable,
    training_inputs,
)
from pipelines.training.named_run import continue_run
from pipelines.training.noise_check import warn_of_noise
from pipelines.training.progress import ShowMetrics, Stopped, step_progress
from pipelines.training.teacher import with_teacher

if TYPE_CHECKING:
    from denoise.training.fault_injection import Fault


def train_locally(
    config: Config,
    name: str | None = None,
    out: Path | None = None,
    faults: "Sequence[Fault]" = (),
    profile: bool = False,
) -> Path:
    """Train in this process (or as one rank of ``torchrun``) and return the model folder.

    Checkpoints and metrics.jsonl are in runs/NAME; the same command resumes from the newest intact checkpoint.

    Raises:
        UserError: bad input, or no GPU where one is asked for.
        Stopped: SIGTERM came; a checkpoint has been saved.
    """
    from denoise import distributed
    from denoise.methods import with_net
    from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
    from denoise.training.fault_injection import FaultInjector
    from denoise.training.loop import train

    config, name = with_net(with_teacher(config)), name and require_name(name, "--name")
    inputs = training_inputs(config, name)
    run = Path("runs") / inputs.name
    store, model = FolderStore(run / "checkpoints"), out or run / "model"
    if name:
        inputs = continue_run(config, inputs, store, run / "model")
    require_replaceable(model)
    _choose_device(config.ray.gpu)
    distributed.start_from_environment(config.ray.timeout)
    try:
        rank = distributed.rank()
        config = dataclasses.replace(config, ray=dataclasses.replace(config.ray, workers=distributed.world_size()))
        injector = FaultInjector(faults, rank)
        datasets = open_datasets(config, inputs.parts)
        if rank == 0:
            warn_of_noise(config, inputs)
        with _progress(inputs.name, config.train.steps, rank) as show, stop_event_on_sigterm() as stop:
            steps = train(
                config,
                train_set=datasets["train"],
                val_set=datasets.get("val"),
                folder=run,
                report=_reporter(run, show) if rank == 0 else lambda metrics: None,
                checkpoints=CheckpointManager(
                    store,
                    config.ray.keep_checkpoints,
                    lambda message: say(f"{inputs.name}: {message}"),
                    injector,
                ),
                provenance=provenance(inputs),
                training_images=inputs.training_images(config) if rank == 0 else b"",
                stop_requested=stop.is_set,
                faults=injector,
                profile=run / PROFILE if profile else None,
            )
        if steps < config.train.steps:
            raise Stopped(steps, config.train.steps)
        if rank == 0:
            export_model(config, store, model)
    finally:
        distributed.stop()
    return model


def _choose_device(gpu: str) -> None:
    """Compute as ``ray.gpu`` says, although Ray has no part in it."""
    import torch

    from denoise import distributed

    if gpu == "no":
        distributed.use_device(torch.device("cpu"))
    elif gpu == "yes" and distributed.device().type != "cuda":
        raise UserError("ray.gpu=yes, but torch finds no GPU on this machine; check its driver, or leave ray.gpu out.")


def _progress(name: str, steps: int, rank: int) -> AbstractContextManager[ShowMetrics]:
    """Show progress on rank 0 only."""
    return step_progress(name, steps) if rank == 0 else nullcontext(lambda metrics: None)


def _reporter(run: Path, show: ShowMetrics) -> Callable[[dict[str, float]], None]:
    """Return the ``report`` of rank 0: it appends each row to metrics.jsonl and shows it."""
    from denoise.training.checkpoint import HISTORY

    started = False

    def report(metrics: dict[str, float]) -> None:
        nonlocal started
        if not started:
            run.mkdir(parents=True, exist_ok=True)
            _remove_rows_from(run / HISTORY, metrics["step"])
            started = True
        with (run / HISTORY).open("a", encoding="utf-8") as file:
            file.write(json_line(metrics))
        show(metrics)

    return report


def _remove_rows_from(file: Path, step: float) -> None:
    """Remove the rows from ``step`` on, which an interrupted attempt left and this one writes again."""
    if file.exists():
        rows = [line for line in file.read_text(encoding="utf-8").splitlines() if _step(line) < step]
        file.write_text("".join(line + "\n" for line in rows), encoding="utf-8")


def _step(line: str) -> float:
    """Return the step of a row, infinity where a kill has cut the line."""
    try:
        return float(parse_json(line)["step"])
    except (ArithmeticError, ValueError, KeyError, TypeError):
        return float("inf")

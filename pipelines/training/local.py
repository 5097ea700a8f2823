"""Training without Ray: one process, or the processes that ``torchrun`` started."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.config import Config
from pipelines.console import Advance, progress, say
from pipelines.signals import stop_event_on_sigterm
from pipelines.training.common import PROFILE, Stopped, progress_note
from pipelines.training.inputs import export_model, open_collections, provenance, training_inputs

if TYPE_CHECKING:
    from denoise.training.fault_injection import Fault


def train_locally(
    config: Config,
    name: str | None = None,
    out: Path | None = None,
    inject: "Sequence[Fault]" = (),
    profile: bool = False,
) -> Path:
    """Train in this process (or as one rank of ``torchrun``) and return the model folder.

    Checkpoints and metrics.jsonl are kept in runs/NAME; the same command goes on from the newest sound checkpoint.

    Raises:
        UserError: bad input.
        Stopped: SIGTERM came; a checkpoint has been saved.
    """
    from denoise import distributed
    from denoise.methods import with_net
    from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
    from denoise.training.fault_injection import FaultInjector
    from denoise.training.loop import train

    config = with_net(config)
    inputs = training_inputs(config, name)
    run = Path("runs") / inputs.name
    distributed.start_from_environment(config.ray.timeout)
    try:
        faults = FaultInjector(inject, distributed.rank())
        store = FolderStore(run / "checkpoints")
        checkpoints = CheckpointManager(store, config.ray.keep_checkpoints, _told(inputs.name), faults.wrap_writer)
        sets = open_collections(config, [part.as_dict() for part in inputs.parts])
        with _progress(f"train {inputs.name}", config.train.steps) as advance, stop_event_on_sigterm() as stop:
            report = _reporter(run, advance)
            watched, where = sets.get("val"), provenance(inputs)
            folder = run / PROFILE if profile else None
            done = train(config, sets["train"], watched, run, report, checkpoints, where, stop.is_set, faults, folder)
        if done < config.train.steps:
            raise Stopped(done, config.train.steps)
        model = out or run / "model"
        if distributed.rank() == 0:
            export_model(config, store, model)
    finally:
        distributed.stop()
    return model


def _told(name: str) -> Callable[[str], None]:
    return lambda sentence: say(f"{name}: {sentence}")


def _progress(title: str, steps: int) -> AbstractContextManager[Advance]:
    """Show progress on rank 0 only."""
    from denoise import distributed

    return progress(title, steps, "steps") if distributed.rank() == 0 else nullcontext(lambda amount=1, note="": None)


def _reporter(run: Path, advance: Advance) -> Callable[[dict[str, float]], None]:
    from denoise import distributed
    from denoise.training.checkpoint import HISTORY

    seen = 0.0

    def report(metrics: dict[str, float]) -> None:
        nonlocal seen
        if distributed.rank() > 0:
            return
        run.mkdir(parents=True, exist_ok=True)
        if not seen:
            _rewind(run / HISTORY, metrics["step"])
        with (run / HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        advance(metrics["step"] - seen, progress_note(metrics))
        seen = metrics["step"]

    return report


def _rewind(file: Path, step: float) -> None:
    """Remove the rows from ``step`` on, which an interrupted attempt left and this one writes again."""
    if file.exists():
        rows = [line for line in file.read_text(encoding="utf-8").splitlines() if _step(line) < step]
        file.write_text("".join(line + "\n" for line in rows), encoding="utf-8")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # cut by a kill
        return float("inf")

"""Training without Ray: one process, or the processes that ``torchrun`` started."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from denoise.config import Config
from pipelines.inputs import export_model, open_collections, provenance, training_inputs
from pipelines.progress import Advance, progress

KEPT = 2  # checkpoints


def train_locally(config: Config, name: str | None = None, out: Path | None = None) -> Path:
    """Train in this process (or as one rank of ``torchrun``) and return the model folder.

    Checkpoints and metrics.jsonl are kept in runs/NAME; the same command resumes from the newest sound checkpoint.
    """
    from denoise import distributed
    from denoise.checkpoint import HISTORY, newest_checkpoint
    from denoise.methods import with_net
    from denoise.train import train

    config = with_net(config)
    inputs = training_inputs(config, name)
    run = Path("runs") / inputs.name
    distributed.start_from_environment()
    try:
        resume = newest_checkpoint(run / "checkpoints")
        sets = open_collections(config, [part.as_dict() for part in inputs.parts])
        if resume:
            done = int(resume.name.removeprefix("step-"))
            if distributed.rank() == 0:
                print(f"resuming {inputs.name} at step {done}", file=sys.stderr)
                (run / HISTORY).write_bytes((resume / HISTORY).read_bytes())
        with _progress(f"train {inputs.name}", config.train.steps) as advance:
            report = _reporter(run, advance)
            train(config, sets["train"], sets.get("val"), run, report, resume, provenance(inputs))
        newest = newest_checkpoint(run / "checkpoints")
        folder = out or Path("runs") / inputs.name / "model"
        if distributed.rank() == 0 and newest:
            export_model(newest, folder)
    finally:
        distributed.stop()
    return folder


def _progress(title: str, steps: int) -> AbstractContextManager[Advance]:
    """Show progress on rank 0 only."""
    from denoise import distributed

    return progress(title, steps, "steps") if distributed.rank() == 0 else nullcontext(lambda amount=1, note="": None)


def _reporter(run: Path, advance: Advance) -> Callable[[dict[str, float], Path | None], None]:
    from denoise import distributed
    from denoise.checkpoint import HISTORY, keep_newest

    seen = 0.0

    def report(metrics: dict[str, float], checkpoint: Path | None) -> None:
        nonlocal seen
        if distributed.rank() > 0:
            return
        run.mkdir(parents=True, exist_ok=True)
        with (run / HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if checkpoint:
            keep_newest(checkpoint.parent, KEPT)
        advance(metrics["step"] - seen, f"loss {metrics['loss']:.5f}")
        seen = metrics["step"]

    return report

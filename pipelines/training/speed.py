"""How fast a configuration trains on the device at hand."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from denoise.config import Config

WARM_UP, MEASURED = 5.0, 20.0  # seconds of a measurement: that do not count, and that do
SECONDS = WARM_UP + MEASURED
ENDLESS = 1_000_000_000  # steps


def images_per_second(config: Config) -> float:
    """Train for some seconds in this process and return how many images a second it learns from; nothing is kept.

    Raises:
        UserError: it cannot be trained.
    """
    from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
    from denoise.training.loop import train
    from pipelines.training.inputs import open_datasets, training_inputs

    lengths = {"steps": ENDLESS, "log_every": 2, "eval_every": ENDLESS, "checkpoint_every": ENDLESS}
    config = replace(config, train=replace(config.train, **lengths))  # type: ignore[arg-type]
    inputs, start = training_inputs(config), time.perf_counter()
    times: list[tuple[float, float]] = []  # seconds since the start, step

    def note(metrics: dict[str, float]) -> None:
        times.append((time.perf_counter() - start, metrics["step"]))

    def is_over() -> bool:
        counted = [seconds for seconds, _ in times if seconds > WARM_UP]
        return len(counted) > 1 and counted[-1] - counted[0] > MEASURED

    with tempfile.TemporaryDirectory(prefix="denoise-speed-") as folder:
        train(
            config,
            train_set=open_datasets(config, inputs.parts)["train"],
            val_set=None,
            folder=Path(folder),
            report=note,
            checkpoints=CheckpointManager(FolderStore(Path(folder) / "checkpoints"), 1, lambda message: None),
            stop_requested=is_over,
        )
    counted = [entry for entry in times if entry[0] > WARM_UP]
    (begin, first), (end, last) = counted[0], counted[-1]
    return (last - first) * config.train.batch_size / (end - begin)

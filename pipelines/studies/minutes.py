"""The same time for every row of a study: how many steps each takes in it, from a measurement of its speed."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.documents import parse_json
from denoise.errors import UserError
from denoise.files import write_json
from pipelines.cluster.connect import ray_cluster
from pipelines.cluster.workers import fit_to_cluster
from pipelines.console import say
from pipelines.studies.plan import CellPlan

if TYPE_CHECKING:
    from pipelines.training.side_by_side import Reporter

SPEEDS = "speeds.json"  # images a second by row: measured once, so that an interrupted study keeps its steps
WARM_UP, MEASURED = 5.0, 20.0  # seconds of a measurement: that do not count, and that do
RATE = "images_per_second"
ENDLESS = 1_000_000_000  # steps


def steps_of(
    folder: Path, cells: Sequence[CellPlan], minutes: float, concurrency: int | None = None
) -> Mapping[str, int]:
    """Return how many steps each row trains for, by name, so that all train equally long beside each other.

    A row that failed while it was measured is left out.

    Args:
        folder: of the study, where the speeds are kept.
        cells: of which the first of each row is measured, side by side as they will train.
        minutes: of training, without scoring.
        concurrency: trainings side by side at most.

    Raises:
        UserError: a row cannot be trained.
    """
    file = folder / SPEEDS
    speeds = dict(_read(file))
    first = {cell.row: cell for cell in reversed(cells) if cell.trained}
    missing = [cell for row, cell in first.items() if row not in speeds]
    if missing:
        say(f"measuring the speed of {len(missing)} rows, {WARM_UP + MEASURED:.0f} s each")
        speeds |= _measure(missing, concurrency)
        write_json(file, speeds)
    return {
        row: max(1, round(speeds[row] * 60 * minutes / cell.config.train.batch_size))
        for row, cell in first.items()
        if row in speeds
    }


def _read(file: Path) -> Mapping[str, float]:
    try:
        tree = parse_json(file.read_bytes())
        return {str(row): float(rate) for row, rate in tree.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError):
        raise UserError(f"{file} is damaged; delete it to have the speeds measured again.") from None


def _measure(cells: Sequence[CellPlan], concurrency: int | None) -> dict[str, float]:
    """Return the images a second of rows that train side by side on a cluster."""
    config = cells[0].config
    with ray_cluster(config):
        from pipelines.training.run_list import TaskList, run_each

        fitted = [replace(cell, config=fit_to_cluster(cell.config, side_by_side=True)) for cell in cells]
        speeds = _Speeds(fitted)
        run_each(
            TaskList(fitted, measure_speed), speeds, fitted[0].config, name="study-speeds", concurrency=concurrency
        )
    return speeds.rates


class _Speeds:
    """Takes the speeds that rows report."""

    def __init__(self, cells: Sequence[CellPlan]) -> None:
        self.cells, self.rates = cells, dict[str, float]()

    def reported(self, number: int, report: Mapping[str, Any]) -> None:
        """Take nothing: a measurement reports only its end."""

    def ended(self, number: int, result: Mapping[str, Any], failure: str) -> None:
        """Keep a speed; a row that cannot be trained has none and fails again, with its reason in the table."""
        if RATE in result:
            self.rates[self.cells[number].row] = float(result[RATE])


def measure_speed(cell: CellPlan, report: "Reporter") -> Mapping[str, float]:
    """Train a row for some seconds and return its images a second; nothing is kept.

    Raises:
        UserError: it cannot be trained.
    """
    from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
    from denoise.training.loop import train
    from pipelines.cluster.workers import use_assigned_device
    from pipelines.training.inputs import open_datasets, training_inputs

    config = cell.config
    use_assigned_device(config)
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
    return {RATE: (last - first) * config.train.batch_size / (end - begin)}

"""The same time for every row of a study: how many steps each takes in it, from a measurement of its speed."""

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
from pipelines.training.speed import SECONDS

if TYPE_CHECKING:
    from pipelines.training.side_by_side import Reporter

SPEEDS = "speeds.json"  # images a second by row: measured once, so that an interrupted study keeps its steps
RATE = "images_per_second"


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
        say(f"measuring the speed of {len(missing)} rows, {SECONDS:.0f} s each")
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
    from pipelines.cluster.workers import use_assigned_device
    from pipelines.training.speed import images_per_second

    use_assigned_device(cell.config)
    return {RATE: images_per_second(cell.config)}

"""What the tables and figures of a study's report read from its cells."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipelines.studies.figures import MissingFigureError
from pipelines.studies.results import Cell, StudyRun, Training

FIRST = {"report": 0, "paper": 1}  # sources whose columns come first


def cells_by_row(run: StudyRun) -> dict[str, list[Cell]]:
    """Return the cells of every row of a study, in its order; none where it has not been run."""
    cells: dict[str, list[Cell]] = {row: [] for row in run.rows}
    for cell in run.cells:
        cells[cell.row].append(cell)
    return cells


def scored_sets(run: StudyRun) -> list[str]:
    """Return the test sets that any row was scored on."""
    return list(dict.fromkeys(data for cell in run.cells for data in sets_of(cell)))


def sets_of(cell: Cell) -> list[str]:
    """Return the test sets that a cell was scored on, in the order of its configuration."""
    order = list(cell.config.get("data", {}).get("test", ()))
    return sorted(cell.scores, key=lambda data: order.index(data) if data in order else len(order))


def values(cells: Sequence[Cell], figure: Callable[[Cell], float]) -> list[float]:
    """Return a figure of each cell that has it."""
    numbers = []
    for cell in cells:
        with suppress(MissingFigureError):
            numbers.append(float(figure(cell)))
    return numbers


def trainings(cells: Sequence[Cell]) -> list[Training]:
    """Return the trainings of the cells that have one."""
    return [cell.training for cell in cells if cell.training is not None]


def definition_rows(run: StudyRun) -> dict[str, Mapping[str, Any]]:
    """Return the rows that the study's definition lists, by name; those of its grid are not among them."""
    return {row["name"]: row for row in run.definition.get("rows", ())}


def sources(run: StudyRun) -> dict[str, str]:
    """Return what the columns of published figures are, the report's before those of papers."""
    named = run.definition.get("sources", {})
    return {label: named[label] for label in sorted(named, key=lambda label: (FIRST.get(label, len(FIRST)), label))}


def image_means(cells: Sequence[Cell], key: str) -> dict[tuple[str, str], float]:
    """Return a figure of every image, by set and name, as its mean over the cells; images without it are left out."""
    numbers: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        for data, scores in cell.scores.items():
            for image in scores.get("images", ()):
                if image.get(key) is not None:
                    numbers.setdefault((data, image["name"]), []).append(float(image[key]))
    return {image: sum(found) / len(found) for image, found in numbers.items()}

"""What the driver of a study does with what its processes report: results go to files, steps to the screen."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from denoise.documents import build, parse_json
from denoise.files import write_bytes
from pipelines.console import Advance, progress, say
from pipelines.studies.plan import CellPlan
from pipelines.studies.results import Cell, StudyRun, cell_file, image_folder, settings, write_cell
from pipelines.studies.work import CELL, IMAGES, STEP, UnitTask


class Results:
    """Writes what units report: every result to its file, as soon as it is there."""

    def __init__(self, folder: Path, commit: str, tasks: Sequence[UnitTask], advance: Advance) -> None:
        self.folder, self.commit, self.tasks, self.advance = folder, commit, tasks, advance
        self.steps: dict[int, float] = {}  # that a unit has done, by its number
        self.written: set[tuple[int, int]] = set()

    def reported(self, number: int, report: Mapping[str, Any]) -> None:
        """Write a result, or show how far a training is."""
        unit = self.tasks[number].unit
        if CELL in report:
            cell = build(Cell, parse_json(report[CELL]))
            plan = next(plan for plan in unit.cells if (plan.row, plan.seed) == (cell.row, cell.seed))
            self._write_images(plan, dict(report[IMAGES]))
            self._write(plan, cell)
            say(f"{plan.row}, seed {plan.seed}: {_in_words(cell)}")
        elif STEP in report:
            before = self.steps.get(number, 0.0)
            self.steps[number] = max(before, float(report[STEP]))
            self.advance(self.steps[number] - before, unit.cells[0].row)

    def ended(self, number: int, result: Mapping[str, Any], failure: str) -> None:
        """Write why the rows failed that a unit has not scored."""
        unit = self.tasks[number].unit
        for plan, key in zip(unit.cells, unit.keys, strict=True):
            if failure and (plan.number, plan.seed) not in self.written:
                self._write(plan, Cell(plan.row, plan.seed, settings(plan.config), failure=failure, key=key))
                say(f"{plan.row}, seed {plan.seed}: failed: {failure}")

    def _write(self, plan: CellPlan, cell: Cell) -> None:
        cell = dataclasses.replace(cell, date=f"{datetime.now(UTC):%Y-%m-%d}", commit=self.commit)
        write_cell(cell_file(self.folder, plan.number, plan.seed), cell)
        self.written.add((plan.number, plan.seed))

    def _write_images(self, plan: CellPlan, images: Mapping[str, bytes]) -> None:
        for name, png in images.items():
            file = image_folder(self.folder, plan.number, plan.seed) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, png)


@contextmanager
def results_to(folder: Path, run: StudyRun, tasks: Sequence[UnitTask]) -> Iterator[Results]:
    """Show progress in steps while the block runs."""
    steps = sum(task.unit.config.train.steps for task in tasks if task.unit.cells[0].trained)
    with progress(f"study {run.name}", steps or None, "steps") as advance:
        yield Results(folder, run.commit, tasks, advance)


def _in_words(cell: Cell) -> str:
    scores = [f"{name} {score['psnr']:.2f} dB" for name, score in cell.scores.items() if score.get("psnr") is not None]
    return ", ".join(scores)

"""What a study leaves: one JSON file for each row and seed, and the study as it was run, in studies/NAME/BUDGET."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from denoise.config import Config, recorded
from denoise.documents import build, parse_json
from denoise.errors import UserError, first_line
from denoise.files import finite_or_null, write_json

STUDIES = Path("studies")  # folder of what studies leave
ELSEWHERE = ("ray", "tracking", "tune", "preset", "compare")  # sections that do not decide a result
PLACES = ("root", "url", "mirror", "disk_gb")  # keys of data that do not
PLAN, CELLS, IMAGES = "study.json", "cells", "images"


@dataclass(frozen=True)
class Training:
    """What a row's training took."""

    run: str  # its name, by which `denoise runs` and MLflow know it
    steps: int
    batch_size: int
    images: int  # steps times batch size
    train_images: int  # samples of the training sets: one epoch
    weights: int  # parameters of the net
    seconds: float | None  # in training and validation, all attempts together
    images_per_second: float | None  # median over the rows of the log
    peak_memory_mb: float | None  # of the process that trained, on a GPU of that
    device: str
    data: Mapping[str, str]  # SET/SPLIT -> version (hex)
    code: str  # digest of the core
    history: tuple[Mapping[str, float], ...]  # rows of metrics by step; seconds is the time since the start

    @property
    def epochs(self) -> float:
        """How often each training image was seen."""
        return self.images / max(1, self.train_images)


@dataclass(frozen=True)
class Cell:
    """One row of a study with one seed: its training, its scores, or why it failed."""

    row: str
    seed: int
    config: Mapping[str, Any]  # as ``settings`` returns it
    training: Training | None = None  # None: the method needs no training, or failed
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # set -> what ``evaluate_model`` returns
    failure: str = ""
    key: str = ""  # of config, data and code: a cell with another is run again
    date: str = ""  # when it was written
    commit: str = ""  # of the program that ran it


@dataclass(frozen=True)
class StudyRun:
    """A study as it was run: its definition, what was chosen of it, and where."""

    name: str
    budget: str
    definition: Mapping[str, Any]  # the study's YAML
    rows: tuple[str, ...]  # all rows of the study; of those that were not chosen there is no cell
    seeds: tuple[int, ...]
    keys: Mapping[str, str] = field(default_factory=dict)  # file of a cell -> Cell.key that it must have to count
    stand_in: str = ""  # which images stand in for the published ones; empty: none do
    minutes: float | None = None  # the same time for each row, in place of the budget's steps
    commit: str = ""  # of the last time that it was run, as is the date
    date: str = ""
    command: str = ""  # that runs it again
    cells: tuple[Cell, ...] = ()  # in the order of rows and seeds; those that are missing have not ended yet

    @property
    def dates(self) -> str:
        """When its results were made, the days in order."""
        return ", ".join(sorted({cell.date or self.date for cell in self.cells} or {self.date}))

    @property
    def commits(self) -> str:
        """The commits that made its results, in the order of the rows."""
        return ", ".join(dict.fromkeys([cell.commit or self.commit for cell in self.cells] or [self.commit]))


def settings(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration decides a result, and not where it runs, as plain data."""
    tree = recorded(config) if isinstance(config, Config) else config
    kept = {key: value for key, value in tree.items() if key not in ELSEWHERE}
    data = {key: value for key, value in tree["data"].items() if key not in PLACES}
    return json.loads(json.dumps({**kept, "data": data}))  # type: ignore[no-any-return]  # tuples become lists


def study_folder(name: str, budget: str) -> Path:
    """Return the folder of a study's results."""
    return STUDIES / name / budget


def cell_file(folder: Path, number: int, seed: int) -> Path:
    """Return the file of a cell; rows are numbered as the study lists them, since a name may have any character."""
    return folder / CELLS / f"{number:02d}-seed{seed}.json"


def image_folder(folder: Path, number: int, seed: int) -> Path:
    """Return the folder of the images that are kept of a cell: SET/NAME-KIND.png."""
    return folder / IMAGES / cell_file(folder, number, seed).stem


def write_cell(file: Path, cell: Cell) -> None:
    """Write a cell; numbers that are not finite become null."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, finite_or_null(asdict(cell)))


def read_cell(file: Path) -> Cell | None:
    """Return a cell, None where there is none yet.

    Raises:
        UserError: the file is damaged.
    """
    try:
        tree = parse_json(file.read_bytes())
        return build(Cell, tree)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, UserError, TypeError) as error:
        raise UserError(
            f"{file} is not the result of a study's row ({first_line(error)}); delete it, and run the study again."
        ) from None


def write_run(folder: Path, run: StudyRun) -> None:
    """Write what was chosen of a study, without its cells."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = json.loads(json.dumps(asdict(run)))
    del tree["cells"]
    write_json(folder / PLAN, tree)


def read_run(folder: Path) -> StudyRun:
    """Return a study as it was run, with the cells that have ended.

    Raises:
        UserError: the study has not been run, or a file is damaged.
    """
    try:
        tree = parse_json((folder / PLAN).read_bytes())
        run = build(StudyRun, tree)
    except FileNotFoundError:
        raise UserError(f"there is no study in {folder}; run it with `denoise study run NAME`.") from None
    except (OSError, ValueError, UserError, TypeError) as error:
        raise UserError(f"{folder / PLAN} is damaged ({first_line(error)}); run the study again.") from None
    cells = []
    for number, _ in enumerate(run.rows):
        for seed in run.seeds:
            file = cell_file(folder, number, seed)
            cell = read_cell(file)
            if cell is not None and cell.row == run.rows[number] and cell.key == run.keys.get(file.name, cell.key):
                cells.append(cell)
    return build(StudyRun, {**tree, "cells": tuple(cells)})

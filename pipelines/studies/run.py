"""Run a study: what is missing of its data, then its trainings side by side, each scored as its rows ask."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from denoise.errors import UserError
from denoise.files import lock_folder
from denoise.redaction import without_passwords
from pipelines.cluster.connect import ray_cluster
from pipelines.cluster.workers import fit_to_cluster
from pipelines.console import say
from pipelines.studies.definition import Study
from pipelines.studies.minutes import steps_of
from pipelines.studies.mlflow_run import child_tags, parent_spec, run_id
from pipelines.studies.plan import CellPlan, Unit, cell_plans, select, units
from pipelines.studies.results import (
    StudyRun,
    cell_file,
    read_cell,
    read_run,
    settings,
    study_folder,
    write_run,
)
from pipelines.studies.sets import make_sets, needs_stand_in
from pipelines.tracking.lifecycle import journal_folder, tracked_run
from pipelines.training.inputs import git_version

LOCK = "lock"


@dataclass(frozen=True)
class Options:
    """What of a study is run, and how."""

    budget: str = "smoke"
    rows: tuple[str, ...] = ()  # none: all
    seeds: tuple[int, ...] | None = None  # None: those of the budget
    stand_in: bool = False  # whether other images may stand in for published ones that are not there
    minutes: float | None = None  # of training for each row, in place of the budget's steps
    concurrency: int | None = None  # trainings side by side; None: as many as there is room for
    command: str = ""  # that runs it again


def run_study(name: str, study: Study, params: Path, overrides: Sequence[str], options: Options) -> StudyRun:
    """Run what is missing of a study's rows and return it with all results; its report is another step.

    The results are in studies/NAME/BUDGET. A row whose result is there, from the same configuration, data and code, is
    not run again; an interrupted training goes on from its last checkpoint.

    Args:
        name: of the study.
        study: its definition.
        params: the file params.yaml, if there is one.
        overrides: ``KEY=VALUE`` for all rows.
        options: what of it is run.

    Raises:
        UserError: bad input, a data set that is missing, or the study is running already.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the same command goes on.
    """
    numbers, seeds = select(study, options.budget, list(options.rows), options.seeds)
    folder = study_folder(name, options.budget)
    with lock_folder(folder / LOCK, "running the study in"):
        seeds = _with_earlier_seeds(folder, seeds)
        stand_in = needs_stand_in(study, options.budget, params, overrides, options.stand_in)
        plan = partial(cell_plans, study, options.budget, seeds, params=params, overrides=overrides, stand_in=stand_in)
        plans = plan()
        make_sets(study, [cell for cell in plans if cell.number in numbers])
        if options.minutes is not None:
            wanted = [cell for cell in plans if cell.number in numbers]
            plans = plan(steps=steps_of(folder, wanted, options.minutes, options.concurrency))
        wanted = [cell for cell in plans if cell.number in numbers]
        groups = units(wanted)
        run = _describe(name, study, seeds, _keys(folder, plans, groups), options, stand_in)
        write_run(folder, run)
        tasks = [unit for unit in (_remaining(folder, unit) for unit in groups) if unit is not None]
        finished = len(wanted) - sum(len(unit.cells) for unit in tasks)
        say(f"{name}: {len(wanted)} results, {finished} of them there already; {len(tasks)} runs to do")
        if tasks:
            _run_units(run, tasks, folder, options)
        return read_run(folder)


def _run_units(run: StudyRun, groups: Sequence[Unit], folder: Path, options: Options) -> None:
    """Run units side by side below one run in MLflow."""
    config = groups[0].config
    spec = parent_spec(run, config)
    with tracked_run(spec, journal_folder(config.ray.storage, spec.name)) as parent:
        say(f"{run.name}: MLflow at {without_passwords(spec.uri)}")
        with ray_cluster(config):
            from pipelines.studies.listener import results_to
            from pipelines.studies.work import UnitTask, do_unit
            from pipelines.training.run_list import TaskList, run_each

            tags = child_tags(run, run_id(parent.spec))
            tasks = [UnitTask(_fitted(unit), tags(unit), run.seeds[0]) for unit in groups]
            with results_to(folder, run, tasks) as listener:
                run_each(
                    TaskList(tasks, do_unit),
                    listener,
                    tasks[0].unit.config,
                    name=spec.name,
                    concurrency=options.concurrency,
                )


def _fitted(unit: Unit) -> Unit:
    """Return a unit whose workers fit the connected cluster."""
    cells = tuple(
        dataclasses.replace(cell, config=fit_to_cluster(cell.config, side_by_side=True)) for cell in unit.cells
    )
    return dataclasses.replace(unit, cells=cells)


def _remaining(folder: Path, unit: Unit) -> Unit | None:
    """Return what is left to do of a unit: the cells whose results are missing, failed, or of something else."""
    left = [
        (cell, key)
        for cell, key in zip(unit.cells, unit.keys, strict=True)
        if _finished(cell_file(folder, cell.number, cell.seed)) != key
    ]
    if not left:
        return None
    return Unit(unit.name, tuple(cell for cell, _ in left), tuple(key for _, key in left))


def _finished(file: Path) -> str:
    """Return the key of a result that is there; the empty string where there is none, or one of a failure."""
    cell = None
    with suppress(UserError):  # a damaged file is written anew
        cell = read_cell(file)
    return cell.key if cell and not cell.failure else ""


def _with_earlier_seeds(folder: Path, seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds with those that the study was run with before, whose results stay in its table."""
    earlier: Sequence[int] = ()
    with suppress(UserError):
        earlier = read_run(folder).seeds
    return tuple(dict.fromkeys([*seeds, *earlier]))


def _keys(folder: Path, plans: Sequence[CellPlan], groups: Sequence[Unit]) -> dict[str, str]:
    """Return the key that the result of each cell must have to count, by the name of its file.

    Rows that are not run now keep their results, unless those are of another configuration.
    """
    keys = {}
    for cell in plans:
        file = cell_file(folder, cell.number, cell.seed)
        earlier = read_cell(file) if _finished(file) else None
        if earlier and settings(earlier.config) != settings(cell.config):
            keys[file.name] = "of another configuration"
    for unit in groups:
        for cell, key in zip(unit.cells, unit.keys, strict=True):
            keys[cell_file(folder, cell.number, cell.seed).name] = key
    return keys


def _describe(
    name: str, study: Study, seeds: Sequence[int], keys: Mapping[str, str], options: Options, stand_in: bool
) -> StudyRun:
    commit, edited = git_version()
    return StudyRun(
        name=name,
        budget=options.budget,
        definition=dataclasses.asdict(study),
        rows=tuple(row.name for row in study.all_rows()),
        seeds=tuple(seeds),
        keys=keys,
        stand_in=study.stand_in.note if stand_in and study.stand_in else "",
        minutes=options.minutes,
        commit=commit[:10] + "+" * (edited and bool(commit)),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=options.command,
    )

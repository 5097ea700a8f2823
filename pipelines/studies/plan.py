"""A study, ready to run: the configuration of every row and seed, checked, with the trainings that rows share."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoise.config import Config, digest, from_dict, load_config, to_dict
from denoise.errors import UsageError, UserError
from pipelines.datasets.layout import open_sets
from pipelines.storage.checkpoints import absolute
from pipelines.studies.definition import Row, Study, chosen
from pipelines.tracking import client as tracking
from pipelines.training.teacher import with_teacher

EVALUATIONS, LOGS = 15, 60  # validations and rows of the log that a training has, where the study does not say


@dataclass(frozen=True, repr=False)  # an address in a configuration may hold a password
class CellPlan:
    """A row with one seed."""

    number: int  # of the row within the study
    row: str
    seed: int
    config: Config  # with absolute addresses

    @property
    def trained(self) -> bool:
        """Whether the row's method has to be trained."""
        return is_trained(self.config)


@dataclass(frozen=True, repr=False)
class Unit:
    """One training with all cells that score its model, or one cell that needs no training."""

    name: str  # of the run
    cells: tuple[CellPlan, ...]
    keys: tuple[str, ...]  # of the cells' results: what decides them

    @property
    def config(self) -> Config:
        """The configuration that is trained."""
        return self.cells[0].config


def select(
    study: Study, budget: str, rows: list[str] | None, seeds: Sequence[int] | None
) -> tuple[list[int], tuple[int, ...]]:
    """Return the numbers of the chosen rows, and the seeds of a budget.

    Raises:
        UsageError: an unknown budget or row; the message names the nearest one.
    """
    chosen("budget", [budget], list(study.budgets))
    every = [row.name for row in study.all_rows()]
    names = chosen("row", rows, every)
    if seeds is not None and len(set(seeds)) < len(seeds):
        raise UsageError("--seeds names one twice; give different numbers, e.g. --seeds 0,1,2.")
    return [every.index(name) for name in names], tuple(study.budgets[budget].seeds if seeds is None else seeds)


def row_config(
    study: Study,
    row: Row,
    budget: str,
    *,
    params: Path | None = None,
    overrides: Iterable[str] = (),
    stand_in: bool = False,
    steps: int | None = None,
) -> Config:
    """Return the configuration of a row: params.yaml below its preset, the study, the budget, the row and overrides.

    ``steps``, where it is given, replaces those of the budget.

    Raises:
        UsageError: an unknown key or an invalid value.
    """
    from pipelines.training.recipes import load_recipe

    trees = [
        load_recipe(row.preset).config if row.preset else {},
        study.config,
        study.stand_in.config if stand_in and study.stand_in else {},
        study.budgets[budget].config,
        row.config,
        row.budgets.get(budget, {}),
    ]
    overrides = [*overrides, *([f"train.steps={steps}"] if steps else [])]
    try:
        steps = load_config(params, overrides, *trees).train.steps
        lengths = {
            "eval_every": max(1, steps // EVALUATIONS),
            "checkpoint_every": max(1, steps // EVALUATIONS),
            "log_every": max(1, steps // LOGS),
        }
        return load_config(params, overrides, {"train": lengths}, *trees)
    except UserError as error:
        raise UsageError(f"row {row.name}: {error}") from None


def cell_plans(
    study: Study,
    budget: str,
    seeds: Sequence[int],
    *,
    params: Path | None = None,
    overrides: Sequence[str] = (),
    stand_in: bool = False,
    steps: Mapping[str, int] | None = None,
) -> list[CellPlan]:
    """Return every row with each of the seeds, its configuration checked, with addresses that hold everywhere.

    ``steps`` by row replace those of the budget.

    Raises:
        UsageError: a row that cannot be trained as it is described.
    """
    cells = []
    for number, row in enumerate(study.all_rows()):
        config = row_config(
            study,
            row,
            budget,
            params=params,
            overrides=overrides,
            stand_in=stand_in,
            steps=(steps or {}).get(row.name),
        )
        config = _checked(row, config)
        cells += [CellPlan(number, row.name, seed, dataclasses.replace(config, seed=seed)) for seed in seeds]
    return cells


def units(cells: Sequence[CellPlan]) -> list[Unit]:
    """Return the cells, those of one training together; the data sets have been made.

    Raises:
        UserError: a data set is missing, or training images are test images.
    """
    from pipelines.training.inputs import training_inputs

    groups: dict[str, list[tuple[CellPlan, str]]] = {}
    code = _evaluation_code()
    for cell in cells:
        test = {name: shards.digest for name, shards in open_sets(cell.config, "test")}
        tree = to_dict(cell.config)
        decisive: dict[str, Any] = {"evaluate": tree["evaluate"], "test": test, "code": code}
        if cell.trained:
            run = training_inputs(cell.config).name
        else:
            decisive |= {key: tree[key] for key in ("method", "noise")} | {"colour": cell.config.data.colour}
            run = f"{cell.config.method.name}-{cell.config.noise}-{digest(decisive)[:10]}"
        groups.setdefault(run, []).append((cell, digest({**decisive, "run": run})))
    return [
        Unit(run, tuple(cell for cell, _ in group), tuple(key for _, key in group)) for run, group in groups.items()
    ]


def is_trained(config: Config) -> bool:
    """Return whether a configuration's method has to be trained."""
    from denoise.methods import METHODS

    return METHODS[config.method.name].trained


def _placed(config: Config) -> Config:
    """Return a configuration whose addresses hold on other machines, too, with the net of its method."""
    from denoise.methods import with_net

    config = with_teacher(config)
    data = dataclasses.replace(config.data, root=str(Path(config.data.root).absolute()))
    ray = dataclasses.replace(config.ray, storage=absolute(config.ray.storage))
    where = dataclasses.replace(config.tracking, uri=tracking.resolve_uri(config.tracking.uri, Path.cwd()))
    return with_net(from_dict(to_dict(dataclasses.replace(config, data=data, ray=ray, tracking=where))))


def _checked(row: Row, config: Config) -> Config:
    """Return a row's configuration with addresses that hold everywhere, after building what it trains, or is.

    Raises:
        UsageError: it cannot be built.
    """
    from denoise.evaluate import get_protocol
    from denoise.methods import build_method
    from denoise.noise import parse_noise
    from denoise.training.setup import build_components

    try:
        config = _placed(config)
        get_protocol(config.evaluate.protocol)
        parse_noise(config.evaluate.noise or config.noise)
        if is_trained(config):
            build_components(config)
        else:
            build_method(config.method.name, config.method.fields, parse_noise(config.noise))
    except UserError as error:
        raise UsageError(f"row {row.name}: {error}") from None
    return config


def _evaluation_code() -> Mapping[str, str]:
    """Return the digests of the code that decides scores beside that of training."""
    import denoise
    from denoise.files import file_digest

    root = Path(denoise.__file__).parent
    modules = ("evaluate", "tiling", "denoiser", "images/metrics", "images/tiles", "images/tensors")
    return {name: file_digest(root / f"{name}.py") for name in modules}

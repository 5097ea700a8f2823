"""Study definitions: the rows of a published table, what they train on, how long, and what must hold; from YAML."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from denoise.documents import build, parse_yaml
from denoise.errors import UsageError, UserError, nearest
from denoise.fields import Positive, Seed, Share
from denoise.files import require_name

BUDGETS = ("smoke", "short", "paper")
Tree = Mapping[str, Any]  # keys of params.yaml, nested
Figure = float | tuple[float, float]  # PSNR in dB, or PSNR and SSIM


@dataclass(frozen=True)
class Row:
    """One row of a table: a method, trained in one way and scored in one way."""

    name: str
    preset: str | None = None  # a published recipe below everything else
    config: Tree = field(default_factory=dict)  # keys of params.yaml, laid over the study's and the budget's
    budgets: Mapping[str, Tree] = field(default_factory=dict)  # the same, of this row within one budget
    published: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)  # source -> column -> figure
    note: str = ""


@dataclass(frozen=True)
class Budget:
    """How long and how often the rows are trained, and on how many images they are scored."""

    config: Tree = field(default_factory=dict)  # keys of params.yaml, laid over the study's
    seeds: tuple[Seed, ...] = (0,)
    note: str = ""


@dataclass(frozen=True)
class DerivedSet:
    """A data set made of the images of another, for which a study asks by its own name."""

    source: str  # SET/SPLIT, e.g. kodak/test
    split: Literal["train", "val", "test"] = "train"
    cut: Positive | None = None  # side of the square cut from the centre of each image; smaller images are left out
    val_share: Share | None = None  # this share of the images becomes the set's val split


@dataclass(frozen=True)
class StandIn:
    """What replaces published data sets that are not there, if the user allows it."""

    note: str  # which published images are replaced by which
    config: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A published table; the shape of pipelines/studies/tables/NAME.yaml."""

    title: str
    rows: tuple[Row, ...] = ()
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # key of params.yaml -> values; more rows
    source: str = ""  # the report or paper, with the number of the table
    sources: Mapping[str, str] = field(default_factory=dict)  # name of a column of published figures -> what it is
    note: str = ""  # known defects of the original, and what differs here
    config: Tree = field(default_factory=dict)  # keys of params.yaml that all rows share
    sets: Mapping[str, DerivedSet] = field(default_factory=dict)
    stand_in: StandIn | None = None
    budgets: Mapping[str, Budget] = field(default_factory=lambda: {"smoke": Budget()})
    hold: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # budget, or "always" -> expressions

    def all_rows(self) -> tuple[Row, ...]:
        """Return the rows, those of the grid last, named by their values."""
        return (*self.rows, *_grid_rows(self.grid))


def names() -> list[str]:
    """Return the names of the studies that are installed, sorted."""
    folder = files("pipelines.studies") / "tables"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def study_name(reference: str) -> str:
    """Return the name of a study that is given by its name or by its file; it becomes a folder's."""
    return require_name(Path(reference).stem if _is_file(reference) else reference, "the name of the study")


def load_study(reference: str) -> Study:
    """Return a study by its name, or by the path of a YAML file.

    Raises:
        UsageError: there is none of that name, or the file is not a study.
    """
    if _is_file(reference):
        try:
            text = Path(reference).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"the study {reference} cannot be read ({error}); give a YAML file.") from None
    elif reference in names():
        text = (files("pipelines.studies") / "tables" / f"{reference}.yaml").read_text(encoding="utf-8")
    else:
        known = names()
        raise UsageError(f"{reference} is not a study{nearest(reference, known)}; `denoise study list` names them.")
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{reference} is not valid YAML: {error}.") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{reference} should hold keys and values; `denoise study show` shows one to learn from.")
    try:
        return check_study(build(Study, tree))
    except UserError as error:
        raise UsageError(f"{reference}: {error}") from None


def check_study(study: Study) -> Study:
    """Return the study if its parts fit each other.

    Raises:
        UsageError: they do not.
    """
    from pipelines.studies.hold import check_expression

    rows = study.all_rows()
    row_names = [row.name for row in rows]
    if not rows:
        raise UsageError("it has no rows; name at least one, e.g. rows: [{name: N2N, config: {method: n2n}}].")
    if twice := next((name for name in row_names if row_names.count(name) > 1), None):
        raise UsageError(f"two rows are named {twice}; give each a name of its own.")
    if not study.budgets:
        raise UsageError("it has no budget; write for example budgets: {smoke: {config: {train: {steps: 100}}}}.")
    for budget in study.budgets.values():
        if not budget.seeds or len(set(budget.seeds)) < len(budget.seeds):
            raise UsageError("the seeds of a budget should be different numbers, at least one.")
    for row in rows:
        _check_row(study, row)
    for budget_name, expressions in study.hold.items():
        if budget_name not in (*study.budgets, "always"):
            raise UsageError(f"hold names the budget {budget_name}, which the study does not have.")
        for expression in expressions:
            check_expression(expression, row_names)
    return study


def _check_row(study: Study, row: Row) -> None:
    for label in row.published:
        if label not in study.sources:
            raise UsageError(f"row {row.name} has figures of {label}; say under sources what that is.")
    for budget in row.budgets:
        if budget not in study.budgets:
            raise UsageError(f"row {row.name} names the budget {budget}, which the study does not have.")


def chosen(kind: str, wanted: list[str] | None, known: list[str]) -> list[str]:
    """Return the wanted names in the order in which the study has them, all of them where none is wanted.

    Raises:
        UsageError: a name is unknown; the message names the nearest one.
    """
    for name in wanted or ():
        if name not in known:
            raise UsageError(f"{name} is not a {kind} of this study{nearest(name, known)}; it has {', '.join(known)}.")
    return [name for name in known if not wanted or name in wanted]


def _grid_rows(grid: Mapping[str, tuple[Any, ...]]) -> Iterator[Row]:
    """Yield a row for every combination of values; its name lists them."""
    if not grid:
        return
    for values in itertools.product(*grid.values()):
        tree: dict[str, Any] = {}
        for key, value in zip(grid, values, strict=True):
            *groups, leaf = key.split(".")
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node[leaf] = value
        yield Row(", ".join(map(_label, values)), config=tree)


def _label(value: object) -> str:
    if isinstance(value, Mapping) and "name" in value:
        value = value["name"]
    if isinstance(value, list | tuple):
        return "+".join(map(_label, value))
    return value if isinstance(value, str) else json.dumps(value)


def _is_file(reference: str) -> bool:
    return reference.endswith((".yaml", ".yml"))

"""The data sets of a study: made where they can be, or replaced by the study's stand-in where the user allows it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from denoise.config import Config
from denoise.errors import UserError
from pipelines.console import say
from pipelines.datasets.derive import derive
from pipelines.datasets.layout import SPLITS, open_set, set_names
from pipelines.datasets.prepare import make_missing
from pipelines.studies.definition import Study
from pipelines.studies.plan import CellPlan, row_config

Use = tuple[str, str]  # split or role, and name of a set


def needs_stand_in(study: Study, budget: str, params: Path, overrides: Sequence[str], allowed: bool) -> bool:
    """Return whether published sets that a stand-in replaces are missing, and the stand-in is allowed.

    Where it is not allowed, ``make_sets`` tries to fetch what is missing.
    """
    if study.stand_in is None or not allowed:
        return False
    published, replaced = (
        [row_config(study, row, budget, params=params, overrides=overrides, stand_in=use) for row in study.all_rows()]
        for use in (False, True)
    )
    kept = set(_uses(replaced))
    missing = [use for use in _uses(published) if use not in kept and not _can_be_had(study, published[0], *use)]
    if missing:
        names = ", ".join(f"{name} ({split})" for split, name in missing)
        say(f"{names} not here; standing in: {study.stand_in.note}")
    return bool(missing)


def make_sets(study: Study, cells: Sequence[CellPlan]) -> None:
    """Make the sets of some cells that are missing: derive those that the study describes, fetch the others.

    Raises:
        UserError: one is missing and cannot be made; the message says how to, or that a stand-in may be allowed.
    """
    hint = f"; or allow the stand-in ({study.stand_in.note}) with --stand-in" if study.stand_in else ""
    for config in {id(cell.config): cell.config for cell in cells}.values():
        for split in SPLITS:
            for name in set_names(config, split):
                if name in study.sets:
                    derive(config, name, study.sets[name])
                elif not _is_there(config, split, name):
                    try:
                        make_missing(config, split, name)
                    except UserError as error:
                        raise UserError(f"{str(error).removesuffix('.')}{hint}.") from None


def _uses(configs: Sequence[Config]) -> Iterator[Use]:
    seen: dict[Use, None] = {}
    for config in configs:
        for split in SPLITS:
            seen |= dict.fromkeys((split, name) for name in set_names(config, split))
    yield from seen


def _can_be_had(study: Study, config: Config, split: str, name: str) -> bool:
    """Return whether a set, or the one that it is derived from, is there."""
    source = study.sets[name].source if name in study.sets else name
    return _is_there(config, split, name) or _is_there(config, split, source)


def _is_there(config: Config, split: str, name: str) -> bool:
    try:
        open_set(config, split, name, check=False)
    except UserError:
        return False
    return True

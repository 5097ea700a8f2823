"""Types of the fields of the configuration, of methods and of sweeps: what their values may be."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from denoise.documents import LARGEST_INT
from denoise.files import NAME_FORM, is_name

SPLITS = ("train", "val", "test")
LARGEST = (1 << 31) - 1  # of all counts, so that no product of two leaves 64 bits


def _split(value: object) -> object:
    """Split ``bsds300,imagenet`` into a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _name(value: str) -> str:
    """Return a name, which becomes one component of a path."""
    if not is_name(value):
        raise ValueError(f"it cannot be a name: {NAME_FORM}")
    return value


def _set_name(value: str) -> str:
    """Return the name of a data set, alone or as SET/SPLIT."""
    name, slash, split = value.partition("/")
    if slash and is_name(name) and split not in SPLITS:
        raise ValueError(f"{split!r} is no split: write {name}/train, {name}/val or {name}/test")
    _name(name)
    return value


def set_and_split(name: str, split: str) -> tuple[str, str]:
    """Return set and split of a name among those of ``data.train``, ``data.val`` or ``data.test``.

    Args:
        name: SET/SPLIT, or SET alone.
        split: of a set that is named alone.
    """
    dataset, slash, own = name.rpartition("/")
    return (dataset, own) if slash and own in SPLITS else (name, split)


def not_empty(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of data sets, at least one."""
    if not names:
        raise ValueError("name at least one data set, e.g. samples")
    return names


def yes_or_no(value: object) -> object:
    """Return the word for a truth value: YAML reads yes and no as one."""
    return {"True": "yes", "False": "no"}[str(value)] if isinstance(value, bool) else value


def auto_or_count(value: object) -> object:
    """Return auto, or a number of at least 1."""
    counts = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST
    if value != "auto" and not counts:
        raise ValueError(f"it should be auto, or a whole number from 1 to {LARGEST}")
    return value


def at_most_32768(value: int | str) -> int | str:
    """Return the side of a crop, at most 2^15."""
    if isinstance(value, int) and value > 1 << 15:
        raise ValueError(f"it should be at most {1 << 15}")
    return value


Names = Annotated[tuple[Annotated[str, AfterValidator(_name)], ...], BeforeValidator(_split)]
SetNames = Annotated[tuple[Annotated[str, AfterValidator(_set_name)], ...], BeforeValidator(_split)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=-LARGEST_INT, le=LARGEST_INT)]
Decay = Annotated[float, Field(ge=0, lt=1)]
AutoYesNo = Annotated[Literal["auto", "yes", "no"], BeforeValidator(yes_or_no)]
Augmentation = Annotated[tuple[Literal["flip", "flip_vertical", "rotate"], ...], BeforeValidator(_split)]

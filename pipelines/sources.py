"""The pictures on disk: where fetch puts them, where shard puts the shards, and how both are opened."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.config import Config
from denoise.errors import UserError

if TYPE_CHECKING:
    from denoise.shards import Shards

SPLITS = ("train", "val", "test")


def raw_folder(root: Path, split: str, name: str) -> Path:
    """Return the folder of a set's original pictures."""
    return root / "raw" / split / name


def shard_folder(root: Path, split: str, name: str) -> Path:
    """Return the folder of a set's shards."""
    return root / "shards" / split / name


def chosen(config: Config, split: str) -> tuple[str, ...]:
    """Return the sets that the configuration names for a split."""
    names: tuple[str, ...] = getattr(config.data, split)
    return names


def open_sets(config: Config, split: str, names: Iterable[str] | None = None) -> "list[tuple[str, Shards]]":
    """Open the shards of the configured (or the given) sets of a split.

    Raises:
        UserError: a set that is not there yet, with the commands that make it.
    """
    from denoise.shards import Shards

    opened = []
    for name in names if names is not None else chosen(config, split):
        folder = shard_folder(Path(config.data.root), split, name)
        if not folder.is_dir():
            raise UserError(
                f"the {split} split of {name} is not in {folder}; make it with "
                f"`denoise fetch {name} && denoise shard {name}` or with `dvc repro`."
            )
        opened.append((name, Shards.open(folder)))
    return opened

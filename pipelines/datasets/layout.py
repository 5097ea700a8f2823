"""The images on disk: where fetch puts them, where shard puts the shards, and how both are opened."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.config import Config
from denoise.errors import UserError

if TYPE_CHECKING:
    from denoise.data.shards import Shards

SPLITS = ("train", "val", "test")


def raw_folder(root: Path, split: str, name: str) -> Path:
    """Return the folder of a set's original images."""
    return root / "raw" / split / name


def shard_folder(root: Path, split: str, name: str) -> Path:
    """Return the folder of a set's shards."""
    return root / "shards" / split / name


def work_folder(root: Path, split: str, name: str) -> Path:
    """Return the folder where a set is sharded; it lies outside of what DVC clears before a stage."""
    return root / "partial" / split / name


def disk_cache() -> Path:
    """Return the folder of shards that came from ``data.url``: DENOISE_CACHE, or the user's own cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DENOISE_CACHE") or home / "denoise") / "shards"


def data_place(config: Config) -> str:
    """Return where the shards are read from, as any working directory of this machine understands it."""
    if config.data.url is not None and "://" in config.data.url:
        return config.data.url
    return str(Path(config.data.url or config.data.root).absolute())


def with_place(config: Config, place: str) -> Config:
    """Return a configuration that reads its shards from what ``data_place`` said."""
    where = {"root": place} if config.data.url is None else {"url": place}
    return replace(config, data=replace(config.data, **where))  # type: ignore[arg-type]


def chosen(config: Config, split: str) -> tuple[str, ...]:
    """Return the sets that the configuration names for a split."""
    names: tuple[str, ...] = getattr(config.data, split)
    return names


def open_sets(config: Config, split: str, names: Iterable[str] | None = None) -> "list[tuple[str, Shards]]":
    """Open the shards of the configured (or the given) sets of a split.

    Raises:
        UserError: a set that is not there yet, with the commands that make it.
    """
    return [(name, open_set(config, split, name)) for name in (names if names is not None else chosen(config, split))]


def open_set(config: Config, split: str, name: str) -> "Shards":
    """Open the shards of a set: at ``data.url`` where that is given, else below ``data.root``.

    Raises:
        UserError: the set is not there, or its index is not understood.
    """
    from denoise.data.shards import Shards

    if config.data.url is not None:
        return open_remote(config, split, name)
    folder = shard_folder(Path(config.data.root), split, name)
    if not folder.is_dir():
        raise UserError(
            f"the {split} split of {name} is not in {folder}; make it with "
            f"`denoise fetch {name} && denoise shard {name}` or with `dvc repro`."
        )
    return Shards.open(folder)


def open_remote(config: Config, split: str, name: str) -> "Shards":
    """Open the shards of a set at ``data.url``; what is read of them is kept on this machine's disk.

    Raises:
        UserError: the set is not there, or its index is not understood.
    """
    from denoise.data.shards import INDEX, Shards, list_name
    from pipelines.storage.base import NotFoundError, fetch_bytes, remote
    from pipelines.storage.shard_cache import ShardCache

    place, prefix = remote(str(config.data.url)), f"{split}/{name}"
    try:
        index = fetch_bytes(place, f"{prefix}/{INDEX}")
    except NotFoundError:
        raise NotFoundError(
            f"the {split} split of {name} is not at {place.address}; put it there with `denoise data push {name}`."
        ) from None
    sizes: dict[str, int] = {}
    shard_cache = ShardCache(place, prefix, disk_cache(), int(config.data.disk_gb * 1e9), sizes)
    shards = Shards.read(f"{place.address}/{prefix}", index, shard_cache)
    for entry in shards.entries:
        sizes[entry["file"]], sizes[list_name(entry["file"])] = entry["bytes"], entry["samples_bytes"]
    return shards

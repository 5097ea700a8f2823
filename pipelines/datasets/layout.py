"""Paths of data sets: raw images, shards, temporary folders and mirrors; opening the shards of a set."""

import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from denoise import fields
from denoise.config import Config
from denoise.errors import UserError
from denoise.fields import set_and_split
from denoise.files import require_name
from pipelines.datasets.hints import how_to_make, similar_set

if TYPE_CHECKING:
    from denoise.data.shards import Shards
    from denoise.sharding.result_cache import ResultCache

SPLITS = fields.SPLITS
SET = "the name of the data set"


def set_path(split: str, name: str) -> str:
    """Return SPLIT/NAME, the path of a set below any of its places; UserError for what cannot be a name.

    Here and below ``split`` is that of a set that is named without one: the name SET/SPLIT says another.
    """
    name, split = set_and_split(name, split)
    return f"{require_name(split, 'the split')}/{require_name(name, SET)}"


def raw_folder(root: Path, split: str, name: str) -> Path:
    """Return the folder of a set's original images; UserError for a name that cannot be a folder's."""
    return root / "raw" / set_path(split, name)


def raw_work_folder(raw: Path) -> Path:
    """Return where a raw folder is built before it is renamed.

    It lies two levels up, so that what a killed process leaves can never count as part of a split.
    """
    return raw.parent.parent / f".{raw.parent.name}-{raw.name}.new"


def fetch_lock(root: Path, name: str) -> Path:
    """Return the lock file that keeps two fetches of a data set apart."""
    return root / "downloads" / f"{name}.lock"


def mirror_path(mirror: str | Path) -> Path | None:
    """Return the path of a mirror, None for a web address.

    Raises:
        UserError: the path does not exist, or it is another kind of address.
    """
    address = urlsplit(str(mirror))
    if address.scheme in ("http", "https"):
        return None
    if "://" in str(mirror) and address.scheme != "file":
        raise UserError(f"the mirror {mirror} cannot be read: give a folder or an address that starts with http(s)://")
    path = Path(unquote(address.path) if address.scheme == "file" else mirror).expanduser()
    if not path.exists():
        raise UserError(f"the mirror {mirror} does not exist: give the path of a folder that holds the set")
    return path


def shard_folder(root: Path, split: str, name: str) -> Path:
    """Return the folder of a set's shards; UserError for a name that cannot be a folder's."""
    return root / "shards" / set_path(split, name)


def local_names(root: Path, split: str) -> list[str]:
    """Return the names of the sets whose shards are on this machine, sorted."""
    return sorted(folder.name for folder in (root / "shards" / split).glob("[!.]*") if folder.is_dir())


def work_folder(root: Path, split: str, name: str) -> Path:
    """Return the temporary folder in which a set is sharded; it lies outside of what ``dvc add`` may track."""
    return root / "partial" / set_path(split, name)


def disk_cache() -> Path:
    """Return the folder of shards downloaded from ``data.url``: in DENOISE_CACHE, or in the user's cache.

    Raises:
        UserError: the user has no home.
    """
    return _user_cache() / "shards"


def results_cache() -> "ResultCache | None":
    """Return what has been found out about data sets, kept beside the shards; None where the user has no home."""
    from denoise.sharding.result_cache import ResultCache

    with suppress(UserError):
        return ResultCache(_user_cache() / "results")
    return None


def _user_cache() -> Path:
    folder = os.environ.get("DENOISE_CACHE")
    if folder:
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "denoise"
    except RuntimeError:
        raise UserError("this user has no home for downloaded shards; set DENOISE_CACHE to a folder.") from None


def data_place(config: Config) -> str:
    """Return where the shards are read from: an address, or a path that holds in any working directory."""
    if config.data.url is not None and "://" in config.data.url:
        return config.data.url
    return str(Path(config.data.url or config.data.root).absolute())


def with_place(config: Config, place: str) -> Config:
    """Return a configuration that reads its shards from what ``data_place`` returned."""
    change = {"root": place} if config.data.url is None else {"url": place}
    return replace(config, data=replace(config.data, **change))  # type: ignore[arg-type]


def set_names(config: Config, split: str) -> tuple[str, ...]:
    """Return the sets, SET or SET/SPLIT, that the configuration names for training, validation or test."""
    names: tuple[str, ...] = getattr(config.data, split)
    return names


def open_sets(config: Config, split: str, names: Iterable[str] | None = None) -> "list[tuple[str, Shards]]":
    """Open the shards of the configured (or the given) sets of a split, each by its name as it is given.

    Raises:
        UserError: a set does not exist yet; the message names the commands that make it.
    """
    return [
        (name, open_set(config, split, name)) for name in (names if names is not None else set_names(config, split))
    ]


def open_set(config: Config, split: str, name: str, check: bool = True) -> "Shards":
    """Open the shards of a set: at ``data.url`` if that is set, else below ``data.root``.

    Args:
        config: where they are.
        split: of a set that is named without one.
        name: SET or SET/SPLIT.
        check: look at every local file at once (``Shards.open``).

    Raises:
        UserError: the set does not exist, or its index cannot be read.
    """
    from denoise.data.shards import Shards

    name, split = set_and_split(name, split)
    if config.data.url is not None:
        return open_remote(config, split, name)
    folder = shard_folder(Path(config.data.root), split, name)
    if not folder.is_dir():
        kept = folder.with_name(f"{folder.name}.dvc")
        hint = how_to_make(name, split, local_names(Path(config.data.root), split))
        if kept.is_file():
            hint = f"DVC keeps it: `dvc checkout {kept}`, or `dvc pull {kept}` from a remote"
        raise UserError(f"the {split} split of {name} is not in {folder}; {hint}.")
    return Shards.open(folder, check)


def open_remote(config: Config, split: str, name: str) -> "Shards":
    """Open the shards of a set at ``data.url``; what is read of them is cached on this machine's disk.

    Raises:
        UserError: the set does not exist, or its index cannot be read.
    """
    from denoise.data.index import LARGEST_INDEX
    from denoise.data.shards import INDEX, Shards
    from pipelines.storage.base import NotFoundError
    from pipelines.storage.remote import fetch_bytes, remote
    from pipelines.storage.shard_cache import ShardCache

    name, split = set_and_split(name, split)
    source, prefix = remote(str(config.data.url)), set_path(split, name)
    try:
        index = fetch_bytes(source, f"{prefix}/{INDEX}", LARGEST_INDEX)
    except NotFoundError:
        raise NotFoundError(
            f"the {split} split of {name}{similar_set(name)} is not at {source.address}; put it there with "
            f"`denoise data push {shlex.quote(name)}`."
        ) from None
    cache = ShardCache(source, prefix, disk_cache(), int(config.data.disk_gb * 1e9))
    return Shards.read(f"{source.address}/{prefix}", index, cache)

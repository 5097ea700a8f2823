"""The stages ``shard`` and ``versions``: make the sets that params.yaml names, and say which version of each is there.

No set is an output of DVC, which would delete it before a stage and replace it on ``dvc checkout``. The pipeline makes
what can be fetched; it writes over nothing that was made by hand, and a set of the user's own is used as it is.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.config import Config
from denoise.documents import parse_json
from denoise.fields import set_and_split
from pipelines.console import say
from pipelines.datasets.catalog import SETS
from pipelines.datasets.fetch import fetch
from pipelines.datasets.imagenet import IMAGENETS
from pipelines.datasets.layout import SPLITS, open_set, set_names, shard_folder
from pipelines.datasets.shard import shard

if TYPE_CHECKING:
    from denoise.data.shards import Shards


def make_sets(config: Config, split: str, record: Path) -> dict[str, str]:
    """Fetch and shard the chosen sets of a split, and return the version (hex) of those that the pipeline has made.

    Args:
        config: which sets, and how they are made.
        split: train, val or test.
        record: the JSON file with what the previous call returned; those of the other splits, SPLIT.json, lie beside
            it. A set that none of them has as it is was made by hand and is kept.

    Raises:
        UserError: a set cannot be fetched, or its images cannot be written as shards.
    """
    made, versions = _made_before(split, record), {}
    for name in filter(lambda name: can_be_made(config, split, name), set_names(config, split)):
        folder = shard_folder(Path(config.data.root), split, name)
        if folder.is_dir() and (set_and_split(name, split), open_set(config, split, name).digest) not in made:
            say(f"{folder} was not made by the pipeline and stays as it is; to have it made anew, delete it.")
            continue
        versions[name] = _make(config, split, name)
    return versions


def set_versions(config: Config, split: str) -> dict[str, str]:
    """Return the version (hex) of each chosen set of a split as it is now; one that is missing is made if it can be.

    Raises:
        UserError: a set is missing, e.g. one of the user's own, or its index cannot be read.
    """
    versions = {}
    for name in set_names(config, split):
        versions[name] = make_missing(config, split, name).digest
    return versions


def make_missing(config: Config, split: str, name: str) -> "Shards":
    """Open a set; one that is missing is fetched first, from ``data.mirror`` if that is given, and sharded.

    Args:
        config: where it goes.
        split: of a set that is named without one.
        name: SET or SET/SPLIT.

    Raises:
        UserError: it cannot be fetched, or is no set that can; the message says what to do.
    """
    if can_be_made(config, split, name) and not shard_folder(Path(config.data.root), split, name).is_dir():
        _make(config, split, name)
    return open_set(config, split, name)


def can_be_made(config: Config, split: str, name: str) -> bool:
    """Return whether a set can be fetched; at ``data.url`` nothing is made."""
    name, split = set_and_split(name, split)
    return config.data.url is None and name in SETS and split in SETS[name].splits


def _make(config: Config, split: str, name: str) -> str:
    name, split = set_and_split(name, split)
    root, sides = Path(config.data.root), {}
    if name in IMAGENETS:
        sides = {"min_side": config.data.min_side, "max_side": config.data.max_side}
    fetch(name, root, splits=[split], mirror=config.data.mirror, **sides)
    say(str(shard(name, split, root, shard_mb=config.data.shard_mb)))
    return open_set(config, split, name).digest


def _made_before(split: str, record: Path) -> set[tuple[tuple[str, str], str]]:
    """Return (set, split) and version of the sets that the pipeline has made, for this split or for another."""
    records = {**{role: record.with_name(f"{role}.json") for role in SPLITS}, split: record}
    return {
        (set_and_split(name, role), str(version))
        for role, file in records.items()
        for name, version in _read(file).items()
    }


def _read(record: Path) -> Mapping[str, str]:
    with suppress(OSError, ValueError):
        tree = parse_json(record.read_bytes())
        if isinstance(tree, Mapping):
            return tree
    return {}

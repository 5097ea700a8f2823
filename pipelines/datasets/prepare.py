"""The stages ``shard`` and ``versions``: make the sets that params.yaml names, and say which version of each is there.

No set is an output of DVC, which would delete it before a stage and replace it on ``dvc checkout``. The pipeline makes
what can be fetched; it writes over nothing that was made by hand, and a set of the user's own is used as it is.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from denoise.config import Config
from denoise.documents import parse_json
from pipelines.console import say
from pipelines.datasets.catalog import SETS
from pipelines.datasets.fetch import fetch
from pipelines.datasets.imagenet import IMAGENETS
from pipelines.datasets.layout import open_set, set_names, shard_folder
from pipelines.datasets.shard import shard


def make_sets(config: Config, split: str, record: Path) -> dict[str, str]:
    """Fetch and shard the chosen sets of a split, and return the version (hex) of those that the pipeline has made.

    Args:
        config: which sets, and how they are made.
        split: train, val or test.
        record: the JSON file with what the previous call returned. A set that differs was made by hand and is kept.

    Raises:
        UserError: a set cannot be fetched, or its images cannot be written as shards.
    """
    made, versions = _read(record), {}
    for name in filter(lambda name: can_be_made(config, split, name), set_names(config, split)):
        folder = shard_folder(Path(config.data.root), split, name)
        if folder.is_dir() and made.get(name) != open_set(config, split, name).digest:
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
        if can_be_made(config, split, name) and not shard_folder(Path(config.data.root), split, name).is_dir():
            _make(config, split, name)
        versions[name] = open_set(config, split, name).digest
    return versions


def can_be_made(config: Config, split: str, name: str) -> bool:
    """Return whether a set can be fetched; at ``data.url`` nothing is made."""
    return config.data.url is None and name in SETS and split in SETS[name].splits


def _make(config: Config, split: str, name: str) -> str:
    root, sides = Path(config.data.root), {}
    if name in IMAGENETS:
        sides = {"min_side": config.data.min_side, "max_side": config.data.max_side}
    fetch(name, root, splits=[split], mirror=config.data.mirror, **sides)
    say(str(shard(name, split, root, shard_mb=config.data.shard_mb)))
    return open_set(config, split, name).digest


def _read(record: Path) -> Mapping[str, str]:
    with suppress(OSError, ValueError):
        tree = parse_json(record.read_bytes())
        if isinstance(tree, Mapping):
            return tree
    return {}

"""``denoise fetch`` and ``denoise shard``: data sets become image files, and those become shards."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from denoise.errors import UsageError, UserError
from pipelines.cli.common import Settings, configuration

if TYPE_CHECKING:
    from denoise.config import Config

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help="Data sets; without, those of params.yaml.")
]
Split = Annotated[str | None, typer.Option(help="train, val or test; without, every split of the set.")]


def fetch(
    names: Names = None,
    split: Split = None,
    mirror: Annotated[
        str | None, typer.Option(help="Folder or address to fetch from instead of the official site.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Bring data sets to data/raw.

    Example: denoise fetch kodak --mirror /srv/images
    """
    from pipelines.datasets.fetch import fetch as fetch_set
    from pipelines.datasets.imagenet import IMAGENETS

    config = configuration(settings)
    for name, chosen in _sets_and_splits(config, names, split):
        folders = fetch_set(
            name,
            Path(config.data.root),
            splits=chosen,
            mirror=mirror or config.data.mirror,
            min_side=config.data.min_side if name in IMAGENETS else None,
            max_side=config.data.max_side if name in IMAGENETS else None,
        )
        for folder in folders:
            print(folder, file=sys.stderr)


def shard(
    names: Names = None,
    split: Split = None,
    source: Annotated[Path | None, typer.Option("--from", help="A folder of images of your own.")] = None,
    skip_broken: Annotated[bool, typer.Option(help="Leave out images that do not decode, and name them.")] = False,
    min_side: Annotated[int | None, typer.Option(help="Leave out images with a shorter side.", min=1)] = None,
    max_side: Annotated[int | None, typer.Option(help="Leave out images with a longer side.", min=1)] = None,
    only: Annotated[str | None, typer.Option(help="grey or colour: leave out the others.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that work side by side; they change no byte.", min=1)] = 1,
    settings: Settings = None,
) -> None:
    """Write data sets as WebDataset shards to data/shards. The same command goes on with an interrupted one.

    Example: denoise shard holiday --from ~/images/holiday --split train

    Example: denoise shard imagenet --split train --jobs 16
    """
    from denoise.sharding.writer import Rules
    from pipelines.datasets.shard import shard as shard_split

    if only not in (None, "grey", "colour"):
        raise UsageError(f"--only {only} is not known; use grey or colour.")
    rules = Rules(min_side, max_side, only, skip_broken)

    config = configuration(settings)
    root = Path(config.data.root)
    if source is not None and (not names or len(names) != 1):
        raise UsageError(
            "--from needs exactly one NAME for the images in that folder, e.g. denoise shard mine --from DIR."
        )
    for name, chosen in _sets_and_splits(config, names, split or ("train" if source else None)):
        for one in chosen or _fetched_splits(root, name):
            print(shard_split(name, one, root, source, config.data.shard_mb, rules, jobs), file=sys.stderr)


def _sets_and_splits(
    config: "Config", names: list[str] | None, split: str | None
) -> list[tuple[str, list[str] | None]]:
    """Return what to work on: the named sets, or those that params.yaml names for the split (or for every split)."""
    from denoise.errors import nearest
    from pipelines.datasets.layout import SPLITS, chosen

    if split is not None and split not in SPLITS:
        raise UsageError(f"--split {split} is not known{nearest(split, SPLITS)}; use train, val or test.")
    if names:
        return [(name, [split] if split else None) for name in names]
    return [(name, [one]) for one in ([split] if split else SPLITS) for name in chosen(config, one)]


def _fetched_splits(root: Path, name: str) -> list[str]:
    from pipelines.datasets.layout import SPLITS, raw_folder

    found = [split for split in SPLITS if raw_folder(root, split, name).is_dir()]
    if not found:
        raise UserError(f"{name} is not in {root / 'raw'}; fetch it first: denoise fetch {name}.")
    return found

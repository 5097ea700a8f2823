"""``denoise fetch`` and ``denoise shard``: data sets become image files, and those become shards."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from denoise.errors import UsageError, UserError, nearest
from pipelines.cli.common import Axes, Channels, Settings, configuration

if TYPE_CHECKING:
    from denoise.config import Config
    from denoise.sharding.plan import SampleFilter
    from denoise.stacks.options import StackOptions

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help="Data sets; without, those of params.yaml.")
]
Split = Annotated[str | None, typer.Option(help="train, val or test; without, every split of the set.")]


@dataclass(frozen=True)
class Derivation:
    """How a set is made of another one, as ``pipelines.datasets.derive`` describes it."""

    source: str
    split: str
    cut: int | None
    val_share: float | None


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
    for name, splits in _sets_and_splits(config, names, split):
        folders = fetch_set(
            name,
            Path(config.data.root),
            splits=splits,
            mirror=mirror or config.data.mirror,
            min_side=config.data.min_side if name in IMAGENETS else None,
            max_side=config.data.max_side if name in IMAGENETS else None,
        )
        for folder in folders:
            print(folder, file=sys.stderr)


def shard(
    names: Names = None,
    split: Split = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder of images of your own, or EE-559's tensor files.")
    ] = None,
    from_set: Annotated[str | None, typer.Option(help="SET/SPLIT, a set of whose images NAME is made.")] = None,
    cut: Annotated[
        int | None,
        typer.Option(help="With --from-set: the centre square of this side; smaller images are left out.", min=1),
    ] = None,
    val_share: Annotated[
        float | None, typer.Option(help="With --from-set: this share of the images becomes the val split.")
    ] = None,
    skip_broken: Annotated[bool, typer.Option(help="Leave out images that do not decode, and name them.")] = False,
    min_side: Annotated[int | None, typer.Option(help="Leave out images with a shorter side.", min=1)] = None,
    max_side: Annotated[int | None, typer.Option(help="Leave out images with a longer side.", min=1)] = None,
    only: Annotated[str | None, typer.Option(help="grey or colour: leave out the others.")] = None,
    axes: Axes = None,
    channels: Channels = "each",
    value_range: Annotated[
        str,
        typer.Option(
            "--range",
            help="The values that are 0 and 1 for a network: LOW,HIGH, type, or percentiles of the images. Default: "
            "type for images and 8 bits, percentiles for the planes of stacks.",
        ),
    ] = "auto",
    jobs: Annotated[int, typer.Option(help="Parallel processes; their number changes no byte.", min=1)] = 1,
    settings: Settings = None,
) -> None:
    """Write data sets as WebDataset shards to data/shards. The same command resumes an interrupted one.

    Example: denoise shard holiday --from ~/images/holiday --split train

    Example: denoise shard cells --from ~/movies --axes TYX --range 100,4095

    Example: denoise shard kodak_64 --from-set kodak/test --split test --cut 64

    Example: denoise shard imagenet --split train --jobs 16
    """
    from denoise.sharding.plan import SampleFilter
    from denoise.stacks.options import StackOptions

    if only not in (None, "grey", "colour"):
        raise UsageError(f"--only {only} is not known; use grey or colour.")
    if from_set is None and (cut is not None or val_share is not None):
        raise UsageError("--cut and --val-share make a set of the images of another; name that with --from-set.")
    if (source or from_set) is not None and (not names or len(names) != 1):
        raise UsageError(
            "--from needs exactly one NAME for the images in that folder, e.g. denoise shard mine --from DIR; so does "
            "--from-set."
        )
    config, sample_filter = configuration(settings), SampleFilter(min_side, max_side, only, skip_broken)
    if from_set is not None and names:
        if source is not None:
            raise UsageError("--from and --from-set name two sources; give one of them.")
        if StackOptions(axes, channels, value_range) != StackOptions():
            raise UsageError("--axes, --channels and --range are of files; the images of --from-set have been read.")
        name, split = set_and_wanted_split(names[0], split)
        _derive(config, name, Derivation(from_set, split or "train", cut, val_share), sample_filter)
        return
    _shard(config, names, split, source, sample_filter, jobs, StackOptions(axes, channels, value_range))


def set_and_wanted_split(name: str, split: str | None) -> tuple[str, str | None]:
    """Return a set, given as SET or SET/SPLIT, and the split that is wanted of it, None for all that it has.

    Raises:
        UsageError: ``split``, the value of --split, is none, or another than the name says.
    """
    from denoise.fields import set_and_split

    dataset, own = set_and_split(name, checked(split) if split is not None else "")
    if split is not None and own != split:
        raise UsageError(f"{name} with --split {split} names two splits; give one of them.")
    return dataset, own or None


def checked(split: str) -> str:
    """Return the value of --split; UsageError if it is none."""
    from denoise.fields import SPLITS

    if split not in SPLITS:
        raise UsageError(f"--split {split} is not known{nearest(split, SPLITS)}; use train, val or test.")
    return split


def _derive(config: "Config", name: str, derivation: Derivation, sample_filter: "SampleFilter") -> None:
    from pipelines.datasets.derive import derive
    from pipelines.datasets.layout import shard_folder

    derive(config, name, derivation, sample_filter)
    for split in (derivation.split,) if derivation.val_share is None else ("train", "val"):
        print(shard_folder(Path(config.data.root), split, name), file=sys.stderr)


def _shard(
    config: "Config",
    names: Iterable[str] | None,
    split: str | None,
    source: Path | None,
    sample_filter: "SampleFilter",
    jobs: int,
    stacks: "StackOptions",
) -> None:
    from denoise.sharding.plan import ALL_IMAGES
    from pipelines.datasets.shard import shard as shard_split
    from pipelines.datasets.tensor_pairs import pair_files, shard_pairs

    root, shard_mb = Path(config.data.root), config.data.shard_mb
    for name, splits in _sets_and_splits(config, names, split):
        pairs = pair_files(source, splits[0] if splits else None) if source is not None else {}
        if pairs and sample_filter != ALL_IMAGES:
            raise UsageError("the images of tensor files are all taken; leave out --min-side and what is like it.")
        for split_name, file in pairs.items():
            print(shard_pairs(name, split_name, root, file, shard_mb), file=sys.stderr)
        if pairs:
            continue
        for split_name in splits or (["train"] if source is not None else _fetched_splits(root, name)):
            folder = shard_split(name, split_name, root, source, shard_mb, sample_filter, jobs, stacks)
            print(folder, file=sys.stderr)


def _sets_and_splits(
    config: "Config", names: Iterable[str] | None, split: str | None
) -> list[tuple[str, list[str] | None]]:
    """Return the named sets, or those that params.yaml names for the split (or for all), each with its splits.

    None stands for all splits that the set has.
    """
    from denoise.fields import SPLITS, set_and_split
    from pipelines.datasets.layout import set_names

    if names:
        wanted = [set_and_wanted_split(name, split) for name in names]
        return [(name, None if own is None else [own]) for name, own in wanted]
    roles = SPLITS if split is None else [checked(split)]
    sets = dict.fromkeys(set_and_split(name, role) for role in roles for name in set_names(config, role))
    return [(name, [own]) for name, own in sets]


def _fetched_splits(root: Path, name: str) -> list[str]:
    from denoise.fields import SPLITS
    from pipelines.datasets.hints import how_to_make
    from pipelines.datasets.layout import raw_folder

    splits = [split for split in SPLITS if raw_folder(root, split, name).is_dir()]
    if not splits:
        raise UserError(f"{name} is not in {root / 'raw'}; {how_to_make(name, None)}.")
    return splits

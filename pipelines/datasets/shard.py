"""The stage ``shard``: write original images as WebDataset tars with an index."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from denoise.printable import printable
from pipelines.console import progress, say
from pipelines.datasets.hints import how_to_make
from pipelines.datasets.layout import raw_folder, shard_folder, work_folder
from pipelines.datasets.planes import find_planes
from pipelines.datasets.scenes import group_scenes, label, view_of

if TYPE_CHECKING:
    from denoise.sharding.plan import SampleFilter, Source
    from denoise.sharding.writer import ShardResult
    from denoise.stacks.options import StackOptions

IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}
MAX_NAMED = 20  # broken images that are named one by one


def shard(
    name: str,
    split: str,
    root: Path,
    source: Path | None = None,
    shard_mb: int = 256,
    sample_filter: "SampleFilter | None" = None,
    jobs: int = 1,
    stacks: "StackOptions | None" = None,
) -> Path:
    """Shard one split of a data set and return the folder of its shards.

    Args:
        name: the data set.
        split: train, val or test.
        root: the data folder.
        source: a folder of your own images, instead of what ``denoise fetch`` has fetched.
        shard_mb: the size at which a shard is closed.
        sample_filter: which images become samples; all that decode by default.
        jobs: processes that work in parallel.
        stacks: how files of many planes are read, and the range of values; None: as they say themselves.

    Raises:
        UserError: there are no images, one does not decode, or no range fits all.
    """
    from denoise.sharding.plan import ALL_IMAGES
    from denoise.sharding.writer import write_shards
    from denoise.stacks.options import StackOptions

    stacks = stacks or StackOptions()
    folder = source if source is not None else raw_folder(root, split, name)
    if not folder.is_dir():
        hint = how_to_make(name, split) if source is None else "give a folder of images"
        raise UserError(f"there are no images in {folder}; {hint}.")
    target = shard_folder(root, split, name)
    total = _count(folder, stacks)  # a second walk, to show the time left
    with progress(f"shard {name} {split}", total, "images") as advance:

        def on_shard_written(result: "ShardResult") -> None:
            advance(result.samples, "(kept from an interrupted run)" if result.reused else "")

        work = work_folder(root, split, name)
        sources, sample_filter = find_sources(folder, stacks), sample_filter or ALL_IMAGES
        wanted = stacks.value_range
        results = write_shards(target, sources, shard_mb << 20, sample_filter, jobs, on_shard_written, work, wanted)
    _report_skipped(results, total)
    _report_values(target, results)
    return target


def find_sources(folder: Path, stacks: "StackOptions | None" = None) -> "Iterator[Source]":
    """Yield the samples below a folder in the order of their names.

    Images of one scene are one sample, and so is each plane of a stack. One folder is in memory at a time, however many
    images there are.

    Args:
        folder: the folder.
        stacks: how files of many planes are read.
    """
    from denoise.stacks.options import StackOptions

    yield from _walk(folder, "", stacks or StackOptions())


def _walk(folder: Path, prefix: str, stacks: "StackOptions") -> "Iterator[Source]":
    """Yield the samples below a folder, with ``prefix`` before their names."""
    from denoise.stacks.kinds import IN_FOLDERS, is_stack

    images: list[Path] = []
    planes: list[Source] = []
    folders: list[str] = []
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.name.startswith(".") or (entry.is_symlink() and _leads_nowhere(path, folder)):
            continue
        if entry.is_dir():
            if is_stack(path):
                planes += find_planes(path, stacks)
            else:
                folders.append(entry.name)
        elif path.suffix.lower() in (*IMAGES, *IN_FOLDERS) and entry.is_file():
            if is_stack(path):
                planes += find_planes(path, stacks)
            else:
                images.append(path)
    # With the slash of folders, the order is that of the whole names.
    items: list[tuple[bytes, Source | str]] = [(os.fsencode(f"{name}/"), name) for name in folders]
    items += [(os.fsencode(source.name), source) for source in (*group_scenes(images), *planes)]
    for _, item in sorted(items, key=lambda pair: pair[0]):
        if isinstance(item, str):
            yield from _walk(folder / item, f"{prefix}{item}/", stacks)
        else:
            yield replace(item, name=label(prefix + item.name))


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}.") from None


def _leads_nowhere(link: Path, folder: Path) -> bool:
    """Return whether a symbolic link in a folder points to the folder, to one above it, or to nothing but itself."""
    # Not Path.resolve, which raises for a link to itself.
    return not link.exists() or Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _count(folder: Path, stacks: "StackOptions") -> int:
    """Count the samples below a folder, and name on standard error the views of a scene that have no partner."""
    count = lone = 0
    names: list[str] = []
    for source in find_sources(folder, stacks):
        count += 1
        first = source.plane is None or source.plane.number == 0
        if first and len(source.views) == 1 and view_of(*source.views.values()):
            lone += 1
            names += [source.name] if len(names) < MAX_NAMED else []
    if lone:
        say(
            f"warning: {lone} images are named like a view of a scene but have no partner, so each is a sample of its "
            f"own: {', '.join(map(printable, names))}{', ...' if lone > len(names) else ''}; the images of a pair are "
            "named like cup_noisy.png and cup_clean.png."
        )
    return count


def _report_skipped(results: "Sequence[ShardResult]", total: int) -> None:
    errors = [error for result in results for error in result.errors]
    excluded = sum(result.excluded for result in results)
    for error in errors[:MAX_NAMED]:
        print(f"left out: {error}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} of {total} images were left out because they do not decode.", file=sys.stderr)
    if excluded:
        print(f"{excluded} of {total} images were left out for their size or colour.", file=sys.stderr)


def _report_values(target: Path, results: "Sequence[ShardResult]") -> None:
    """Say which range the values of a set have, and which of its planes need a word."""
    from denoise.data.shards import Shards
    from denoise.stacks.survey import Survey

    value_range = Shards.open(target, check=False).value_range
    if value_range is not None:
        say(f"the values {value_range} of {target.name} are 0 and 1 for a network; --range LOW,HIGH sets others.")
    for remark in sum((result.values for result in results), Survey()).remarks():
        say(f"warning: {target.name} has {remark}; they are kept as they are.")

"""The stage ``shard``: write original images as WebDataset tars with an index."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.console import progress
from pipelines.datasets.layout import raw_folder, shard_folder, work_folder

if TYPE_CHECKING:
    from denoise.sharding.plan import SampleFilter, Source
    from denoise.sharding.writer import ShardResult

IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}
# End of a file's name -> view, for several images of one scene. PolyU has _real and _mean.
VIEW_SUFFIXES = {"_noisy": "noisy", "_noisy2": "noisy2", "_clean": "clean", "_real": "noisy", "_mean": "mean"}
MAX_NAMED = 20  # broken images that are named one by one


def shard(
    name: str,
    split: str,
    root: Path,
    source: Path | None = None,
    shard_mb: int = 256,
    sample_filter: "SampleFilter | None" = None,
    jobs: int = 1,
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

    Raises:
        UserError: there are no images, or one does not decode.
    """
    from denoise.sharding.plan import ALL_IMAGES
    from denoise.sharding.writer import write_shards

    folder = source if source is not None else raw_folder(root, split, name)
    if not folder.is_dir():
        hint = f"fetch it first: denoise fetch {name}" if source is None else "give a folder of images"
        raise UserError(f"there are no images in {folder}; {hint}.")
    target = shard_folder(root, split, name)
    total = sum(1 for _ in find_sources(folder))  # a second walk, to show the time left
    with progress(f"shard {name} {split}", total, "images") as advance:

        def on_shard_written(result: "ShardResult") -> None:
            advance(result.samples, "(kept from an interrupted run)" if result.reused else "")

        work = work_folder(root, split, name)
        sources, sample_filter = find_sources(folder), sample_filter or ALL_IMAGES
        results = write_shards(target, sources, shard_mb << 20, sample_filter, jobs, on_shard_written, work)
    _report_skipped(results, total)
    return target


def find_sources(folder: Path) -> "Iterator[Source]":
    """Yield the samples below a folder in the order of their names; images of one scene (VIEW_SUFFIXES) are one sample.

    One folder is in memory at a time, however many images there are.
    """
    yield from _walk(folder, "")


def _walk(folder: Path, prefix: str) -> "Iterator[Source]":
    """Yield the samples below a folder, with ``prefix`` before their names."""
    images: list[Path] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif Path(entry.name).suffix.lower() in IMAGES and entry.is_file():
                images.append(Path(entry.path))
    # With the slash of folders, the order is that of the whole names.
    items: list[tuple[bytes, Source | str]] = [(f"{name}/".encode(), name) for name in folders]
    items += [(source.name.encode(), source) for source in _group_scenes(images)]
    for _, item in sorted(items, key=lambda pair: pair[0]):
        if isinstance(item, str):
            yield from _walk(folder / item, f"{prefix}{item}/")
        else:
            yield type(item)(prefix + item.name, item.views)


def _group_scenes(images: Sequence[Path]) -> "Iterator[Source]":
    """Yield the samples of one folder: single images, and the views of one scene together."""
    from denoise.sharding.plan import Source

    scenes: dict[str, dict[str, Path]] = {}
    for path in images:
        suffix = next((suffix for suffix in VIEW_SUFFIXES if path.stem.endswith(suffix)), "")
        name = path.with_stem(path.stem.removesuffix(suffix)).name if suffix else path.name
        scenes.setdefault(name, {})[suffix] = path
    for name, views in scenes.items():
        if len(views) > 1 and "" not in views:
            yield Source(name, {VIEW_SUFFIXES[suffix]: path for suffix, path in views.items()})
        else:
            yield from (Source(path.name, {"clean": path}) for path in views.values())


def _report_skipped(results: "Sequence[ShardResult]", total: int) -> None:
    errors = [error for result in results for error in result.errors]
    excluded = sum(result.excluded for result in results)
    for error in errors[:MAX_NAMED]:
        print(f"left out: {error}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} of {total} images were left out because they do not decode.", file=sys.stderr)
    if excluded:
        print(f"{excluded} of {total} images were left out for their size or colour.", file=sys.stderr)

"""The shard stage: original images in, WebDataset tars with an index out."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.console import progress
from pipelines.datasets.layout import raw_folder, shard_folder, work_folder

if TYPE_CHECKING:
    from denoise.sharding.writer import Rules, Source, Written

IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}
# What the images of a real pair are called: the view each is, by the end of its name. PolyU has _real and _mean.
PAIRS = {"_noisy": "noisy", "_noisy2": "noisy2", "_clean": "clean", "_real": "noisy", "_mean": "mean"}
TOLD = 20  # broken images that are named one by one


def shard(
    name: str,
    split: str,
    root: Path,
    source: Path | None = None,
    shard_mb: int = 256,
    rules: "Rules | None" = None,
    jobs: int = 1,
) -> Path:
    """Shard one split of a data set and return the folder of its shards.

    Args:
        name: the data set.
        split: train, val or test.
        root: the data folder.
        source: a folder of images of one's own, instead of what ``denoise fetch`` brought.
        shard_mb: the size at which a shard is closed.
        rules: which images become samples; all that decode by default.
        jobs: processes that work side by side.

    Raises:
        UserError: no images, or one that does not decode.
    """
    from denoise.sharding.writer import Rules, write_shards

    folder = source if source is not None else raw_folder(root, split, name)
    if not folder.is_dir():
        hint = f"fetch it first: denoise fetch {name}" if source is None else "give a folder of images"
        raise UserError(f"there are no images in {folder}; {hint}.")
    target = shard_folder(root, split, name)
    total = sum(1 for _ in find_sources(folder))  # counted first: the time that is left is worth a second walk
    with progress(f"shard {name} {split}", total, "images") as advance:

        def done(written: "Written") -> None:
            advance(written.samples, "(kept from an interrupted run)" if written.kept else "")

        work = work_folder(root, split, name)
        written = write_shards(target, find_sources(folder), shard_mb << 20, rules or Rules(), jobs, done, work)
    _tell(written, total)
    return target


def find_sources(folder: Path) -> "Iterator[Source]":
    """Yield the images below a folder in the order of their names; those of one scene (``PAIRS``) are one sample.

    One folder is in memory at a time, however many images there are.
    """
    yield from _walk(folder, "")


def _walk(folder: Path, prefix: str) -> "Iterator[Source]":
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
    # A folder's slash takes part in the order, so that it is that of the whole names.
    found: list[tuple[bytes, Source | str]] = [(f"{name}/".encode(), name) for name in folders]
    found += [(source.name.encode(), source) for source in _scenes(images)]
    for _, one in sorted(found, key=lambda pair: pair[0]):
        if isinstance(one, str):
            yield from _walk(folder / one, f"{prefix}{one}/")
        else:
            yield type(one)(prefix + one.name, one.views)


def _scenes(images: Sequence[Path]) -> "Iterator[Source]":
    """Yield the samples of one folder: single images, and the views of one scene together."""
    from denoise.sharding.writer import Source

    scenes: dict[str, dict[str, Path]] = {}
    for path in images:
        ending = next((ending for ending in PAIRS if path.stem.endswith(ending)), "")
        title = path.with_stem(path.stem.removesuffix(ending)).name if ending else path.name
        scenes.setdefault(title, {})[ending] = path
    for title, views in scenes.items():
        if len(views) > 1 and "" not in views:
            yield Source(title, {PAIRS[ending]: path for ending, path in views.items()})
        else:
            yield from (Source(path.name, {"clean": path}) for path in views.values())


def _tell(written: "Sequence[Written]", total: int) -> None:
    broken = [sentence for one in written for sentence in one.broken]
    refused = sum(one.refused for one in written)
    for sentence in broken[:TOLD]:
        print(f"left out: {sentence}", file=sys.stderr)
    if broken:
        print(f"{len(broken)} of {total} images were left out because they do not decode.", file=sys.stderr)
    if refused:
        print(f"{refused} of {total} images were left out for their size or colour.", file=sys.stderr)

"""The shard stage: original pictures in, WebDataset tars with an index out."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.progress import progress
from pipelines.sources import raw_folder, shard_folder

if TYPE_CHECKING:
    from denoise.shards import Source

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}
# What the pictures of a real pair are called: the view each is, by the end of its name. PolyU has _real and _mean.
PAIRS = {"_noisy": "noisy", "_noisy2": "noisy2", "_clean": "clean", "_real": "noisy", "_mean": "mean"}


def shard(
    name: str, split: str, root: Path, source: Path | None = None, shard_mb: int = 256, skip_broken: bool = False
) -> Path:
    """Shard one split of a data set and return the folder of its shards.

    Args:
        name: the data set.
        split: train, val or test.
        root: the data folder.
        source: a folder of pictures of one's own, instead of what ``denoise fetch`` brought.
        shard_mb: the size at which a shard is closed.
        skip_broken: leave out pictures that do not decode (each is named) instead of failing.

    Raises:
        UserError: no pictures, or one that does not decode.
    """
    from denoise.shards import write_shards

    folder = source if source is not None else raw_folder(root, split, name)
    if not folder.is_dir():
        hint = f"fetch it first: denoise fetch {name}" if source is None else "give a folder of pictures"
        raise UserError(f"there are no pictures in {folder}; {hint}.")
    sources = list(find_sources(folder))
    target = shard_folder(root, split, name)
    with progress(f"shard {name} {split}", len(sources), "pictures") as advance:
        skipped = write_shards(target, sources, shard_mb << 20, skip_broken, lambda: advance(1))
    for sentence in skipped:
        print(f"left out: {sentence}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} of {len(sources)} pictures were left out.", file=sys.stderr)
    return target


def find_sources(folder: Path) -> "Iterator[Source]":
    """Yield the pictures below a folder in the order of their names; those of one scene (``PAIRS``) are one sample."""
    from denoise.shards import Source

    scenes: dict[str, dict[str, Path]] = {}
    for path in folder.rglob("*"):
        if _is_picture(path):
            name = path.relative_to(folder)
            ending = next((ending for ending in PAIRS if name.stem.endswith(ending)), "")
            scene = name.with_stem(name.stem.removesuffix(ending)) if ending else name
            scenes.setdefault(scene.as_posix(), {})[ending] = path
    found = []
    for title, pictures in scenes.items():
        if len(pictures) > 1 and "" not in pictures:
            found.append(Source(title, {PAIRS[ending]: path for ending, path in pictures.items()}))
        else:
            found += [Source(path.relative_to(folder).as_posix(), {"clean": path}) for path in pictures.values()]
    yield from sorted(found, key=lambda source: source.name.encode())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()

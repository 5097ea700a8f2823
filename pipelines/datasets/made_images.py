"""Shards of images that a program makes: each lies on disk, as a file, only until its shard has been written."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from denoise.files import lock_folder, remove
from pipelines.console import progress
from pipelines.datasets.layout import shard_folder, work_folder

if TYPE_CHECKING:
    from denoise.images.tensors import Pixels
    from denoise.sharding.plan import Source
    from denoise.sharding.writer import ShardResult


SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"II": ".tif", b"MM": ".tif", b"RIFF": ".webp", b"BM": ".bmp"}


class Encoded(NamedTuple):
    """An image as the bytes of a file."""

    suffix: str  # of the file: .jpg
    data: bytes


def encoded(data: bytes) -> Encoded:
    """Return the bytes of an image file with the suffix of its format, by its first bytes."""
    suffix = next((suffix for magic, suffix in SUFFIXES.items() if data.startswith(magic)), ".image")
    return Encoded(suffix, data)


@dataclass(frozen=True, eq=False)
class MadeSample:
    """A sample: its name, and each view as pixels (H, W, C), which become a PNG, or as the bytes of a file."""

    name: str
    views: "Mapping[str, Pixels | Encoded]"


def shard_made(
    name: str, split: str, root: Path, samples: Iterable[MadeSample], count: int, shard_mb: int = 256
) -> Path:
    """Write samples, in their order, as the shards of a set, and return their folder; an older one is replaced.

    One shard's images are on disk and one image is in memory at a time, whatever the number of samples. The same
    samples give the same bytes with the same version of Pillow.

    Args:
        name: the set.
        split: train, val or test.
        root: the data folder.
        samples: what the set is to hold.
        count: how many they are, to show the time left.
        shard_mb: the size at which a shard is closed.

    Raises:
        UserError: there are no samples, or the disk is full.
    """
    from denoise.sharding.writer import write_shards

    target, work = shard_folder(root, split, name), work_folder(root, split, name)
    folder = work.with_name(f"{work.name}.images")
    with lock_folder(folder, "sharding into"), progress(f"shard {name} {split}", count, "images") as advance:

        def on_shard_written(result: "ShardResult") -> None:
            _empty(folder)
            advance(result.samples)

        _empty(folder)  # of what a killed process has left
        try:
            sources = _write_files(samples, folder)
            write_shards(target, sources, shard_mb << 20, on_shard_written=on_shard_written, work=work)
        finally:
            remove(folder, folder.parent)
    return target


def _write_files(samples: Iterable[MadeSample], folder: Path) -> "Iterator[Source]":
    """Write the images of each sample when it is asked for, and yield where they are."""
    from denoise.images.io import DecodedImage, write_image
    from denoise.sharding.plan import Source

    for number, sample in enumerate(samples):
        paths = {}
        for view, image in sample.views.items():
            suffix = image.suffix if isinstance(image, Encoded) else ".png"
            paths[view] = folder / f"{number:08d}-{view}{suffix}"
            if isinstance(image, Encoded):
                paths[view].write_bytes(image.data)
            else:
                write_image(paths[view], DecodedImage(image))
        yield Source(sample.name, paths)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        remove(path, folder)

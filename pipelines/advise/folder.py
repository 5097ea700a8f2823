"""Measuring the noise of a folder of images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from torch import Tensor

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.noise_meter import NoiseMeasurement, block_edges, measure_movement, measure_noise, saturated_share
from pipelines.console import Advance, progress
from pipelines.datasets.shard import find_sources

if TYPE_CHECKING:
    from denoise.sharding.plan import Source

LARGEST = 2048  # side in pixels of the middle of a large image, which is what is measured of it
COMPARED = 4  # pairs of successive images
ALIKE, MOVED, FADED = 0.9, 0.25, 0.02  # correlation when blurred, pixels, share of the mean
JPEG_BLOCK = 8  # the middle begins on its grid


@dataclass(frozen=True)
class FolderNoise:
    """The images of a folder and the noise of some of them."""

    samples: int  # images of one scene are one sample
    pairs: int  # samples with a second observation of the scene: noisy2, or the mean of many
    clean: int  # samples with a clean image
    series: bool  # whether successive images of a folder show one scene, in which nothing moves
    channels: int
    sizes: tuple[tuple[int, int], tuple[int, int]]  # height and width of the smallest and the largest measured image
    saturated: float  # share of values at the ends of the range
    jpeg: float  # median of what ``block_edges`` returns
    measured: tuple[Path, ...]  # the images that the noise was measured in
    sources: "tuple[Source, ...]"  # the samples of which these are images
    noise: NoiseMeasurement


def measure_folder(folder: Path, most: int) -> FolderNoise:
    """Measure the noise of a folder's noisy images, of at most ``most``, evenly spread; clean ones are not looked at.

    Raises:
        UserError: there is no image, one does not decode, or the noise cannot be measured.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of noisy images.")
    sources = list(find_sources(folder))
    if not sources:
        raise UserError(f"no images below {folder}; give a folder of noisy images.")
    chosen = sources[:: -(-len(sources) // most)]
    with progress("measure noise", 3 * len(chosen)) as advance:  # each image is read three times
        traces = [_look(source, advance) for source in chosen]
        channels = Counter(trace.channels for trace in traces).most_common(1)[0][0]
        alike = [trace for trace in traces if trace.channels == channels]
        noise = measure_noise(len(alike), lambda number: load_middle(alike[number].path, advance)[0])
    sizes = sorted((trace.size for trace in alike), key=lambda size: size[0] * size[1])
    return FolderNoise(
        samples=len(sources),
        pairs=sum(bool({"noisy2", "mean"} & set(source.views)) for source in sources),
        series=_is_series(sources),
        clean=sum(len(source.views) > 1 and "clean" in source.views for source in sources),
        channels=channels,
        sizes=(sizes[0], sizes[-1]),
        saturated=sum(trace.saturated for trace in traces) / len(traces),
        jpeg=median(trace.jpeg for trace in traces),
        measured=tuple(trace.path for trace in alike),
        sources=tuple(trace.source for trace in alike),
        noise=noise,
    )


def _is_series(sources: "Sequence[Source]") -> bool:
    """Return whether most of some successive images in folders show the same scene from the same place."""
    following = [pair for pair in pairwise(sources) if _folder(pair[0]) == _folder(pair[1])]
    if 2 * len(following) < len(sources):
        return False
    chosen = following[:: -(-len(following) // COMPARED)]
    return 2 * sum(_unmoved(*pair) for pair in chosen) > len(chosen)


def _folder(source: "Source") -> str:
    return source.name.rpartition("/")[0]


def _unmoved(first: "Source", second: "Source") -> bool:
    before, after = (load_middle(_noisy(source))[0] for source in (first, second))
    if before.shape != after.shape:
        return False
    movement = measure_movement(before, after)
    return movement.likeness > ALIKE and movement.distance < MOVED and abs(movement.brightness) < FADED


@dataclass(frozen=True)
class _Trace:
    """What one image shows."""

    source: "Source"
    path: Path  # of its noisy image
    size: tuple[int, int]  # height, width
    channels: int
    saturated: float
    jpeg: float


def _look(source: "Source", advance: Advance) -> _Trace:
    path = _noisy(source)
    image, size = load_middle(path, advance)
    return _Trace(source, path, size, len(image), saturated_share(image), block_edges(image))


def _noisy(source: "Source") -> Path:
    return source.views.get("noisy") or next(iter(source.views.values()))


def load_middle(path: Path, advance: Advance | None = None) -> tuple[Tensor, tuple[int, int]]:
    """Return the middle of an image, (C, H, W) in [0, 1], and the height and width of all of it."""
    pixels = read_image(path).pixels
    height, width = pixels.shape[:2]
    top, left = (max(0, side - LARGEST) // 2 // JPEG_BLOCK * JPEG_BLOCK for side in (height, width))
    if advance is not None:
        advance(1, note=path.name)
    return to_tensor(pixels[top : top + LARGEST, left : left + LARGEST]), (height, width)

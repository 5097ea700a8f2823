"""Measuring the noise of a folder of images."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from torch import Tensor

from denoise.errors import UserError
from denoise.noise_meter import NoiseMeasurement, block_edges, measure_noise, saturated_share
from pipelines.advise.images import NoisyImage, noisy_images
from pipelines.advise.series import is_series
from pipelines.console import Advance, progress
from pipelines.datasets.shard import find_sources


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
    measured: tuple[NoisyImage, ...]  # the images that the noise was measured in
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
    chosen = noisy_images(sources[:: -(-len(sources) // most)])
    with progress("measure noise", 3 * len(chosen)) as advance:  # each image is read three times
        traces = [_look(image, advance) for image in chosen]
        channels = Counter(trace.channels for trace in traces).most_common(1)[0][0]
        alike = [trace for trace in traces if trace.channels == channels]
        noise = measure_noise(len(alike), lambda number: _load(alike[number].image, advance))
    sizes = sorted((trace.size for trace in alike), key=lambda size: size[0] * size[1])
    return FolderNoise(
        samples=len(sources),
        pairs=sum(bool({"noisy2", "mean"} & set(source.views)) for source in sources),
        clean=sum(len(source.views) > 1 and "clean" in source.views for source in sources),
        series=is_series(sources),
        channels=channels,
        sizes=(sizes[0], sizes[-1]),
        saturated=sum(trace.saturated for trace in traces) / len(traces),
        jpeg=median(trace.jpeg for trace in traces),
        measured=tuple(trace.image for trace in alike),
        noise=noise,
    )


@dataclass(frozen=True)
class _Trace:
    """What one image shows."""

    image: NoisyImage
    size: tuple[int, int]  # height, width
    channels: int
    saturated: float
    jpeg: float


def _look(image: NoisyImage, advance: Advance) -> _Trace:
    pixels = image.read()
    middle = image.middle(pixels=pixels)
    advance(1, note=image.path.name)
    return _Trace(image, pixels.shape[:2], len(middle), saturated_share(middle), block_edges(middle))


def _load(image: NoisyImage, advance: Advance) -> Tensor:
    middle = image.middle()
    advance(1, note=image.path.name)
    return middle

"""PSNR of a denoiser on a set of images without clean ones: an estimate, with its interval and what it assumes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from denoise.data.dataset import ShardedDataset
from denoise.data.samples import REFERENCES, evaluation_pair, real_noisy
from denoise.data.shards import Shards
from denoise.denoiser import Denoiser
from denoise.errors import UserError
from denoise.evaluate import Protocol, require_finite_image, setting, spread
from denoise.images.noise_level import estimate_sigma
from denoise.images.tensors import as_channels, to_tensor
from denoise.noise import Noise
from denoise.noise_meter import REACH
from denoise.quality import (
    ErrorEstimate,
    LocalNoise,
    Source,
    autocorrelation,
    describe,
    known_noise,
    mean_psnr,
    measure_local_noise,
    pair_error,
    sure,
)
from denoise.rng import Rng, batch_rng
from denoise.tiling import restore_batch

SECOND = "noisy2"
SIDE = 1024  # pixels, of the middle of a larger image, in which the residual is looked at
WHITE_UNCERTAINTY = 0.05  # of a variance by ``estimate_sigma``, relative: 2.5 % of sigma 25 in grey
LEAST_PROBES = 4  # over all images of a set


@dataclass(frozen=True)
class Extent:
    """How much of a set is looked at."""

    images: int | None = None  # that are restored, evenly spread over the set; None: all
    side: int | None = None  # of the middle of a larger image that is restored, in pixels; None: whole images
    measured: int = 24  # images in which the noise is measured, at most
    measured_side: int = SIDE  # of their middle


WHOLE = Extent()
QUICK = Extent(images=4, side=256, measured=8, measured_side=512)  # seconds on a CPU


@dataclass(frozen=True)
class EstimatedImage:
    """One restored image with its estimated error; tensors are (C, H, W)."""

    name: str
    noisy: Tensor
    restored: Tensor  # as the protocol compares it
    error: ErrorEstimate
    residual: Tensor  # autocorrelation of noisy - restored in the middle of the image, (2 REACH + 1) squared


def lacks_clean(shards: Shards, noise: Noise) -> bool:
    """Return whether no image of a set can be compared with a clean one."""
    if noise.family != "none":
        return False
    images = ShardedDataset([shards])
    return not any(len(images.views(index)) > 1 and _has_clean(images, index) for index in range(len(shards)))


def estimate(
    denoiser: Denoiser,
    shards: Shards,
    data: str,
    noise: Noise,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    on_image: Callable[[EstimatedImage], None] = lambda image: None,
    *,
    source: Source | None = None,
    assumed_level: float = 1.0,
    extent: Extent = WHOLE,
) -> dict[str, Any]:
    """Estimate the PSNR of a denoiser on a data set without looking at clean images.

    Arguments are those of ``denoise.evaluate.evaluate``, of whose protocol the first repeat is taken. The denoiser
    computes in float32: the differences that SURE takes are smaller than what bfloat16 resolves.

    Args:
        denoiser: on ``device``.
        shards: noisy images, perhaps with second observations; or clean ones, which only synthetic noise is added to.
        data: the name of the set.
        noise: added to the images; ``none`` where they are noisy.
        protocol: how noise is drawn, and what is done to restored images before they are compared.
        device: where to compute.
        on_image: called with every restored image.
        source: how; None for the best there is. A second observation is drawn where the noise is synthetic.
        assumed_level: the noise level that the denoiser is told, as a multiple of the true one.
        extent: how many images, and how much of each.

    Returns:
        What ``evaluate`` says of the setting, and ``estimate``: the source, its assumption, ``estimated_psnr`` in dB,
        ``interval`` of it over these images and ``interval_alike`` over all such images, what they cover and what not,
        ``too_weak`` (whether texture passes for such noise), ``cautions`` (sentences), the numbers of images used and
        not resolved, the noise, the correlation of the residual, and each image. No ``psnr``, so that nothing takes an
        estimate for a measured one.

    Raises:
        UserError: noise whose covariance is not known, or a set that has no second observations where these are wanted.
    """
    denoiser = replace(denoiser, precision="fp32")
    numbers = spread(len(shards), extent.images)
    images = ShardedDataset([shards], denoiser.value_range)
    source = source or _best_source(images, numbers, noise)
    estimator = _Estimator(denoiser, images, noise, protocol, source, assumed_level, device, extent)
    measured = estimator.measure() if source == "SURE, measured noise" else None
    done: list[tuple[str, ErrorEstimate]] = []
    residuals = torch.zeros(2 * REACH + 1, 2 * REACH + 1, dtype=torch.float64)
    for index in numbers:
        image = estimator.estimate(index, measured, probes=-(-LEAST_PROBES // len(numbers)))
        done.append((image.name, image.error))
        residuals += image.residual / len(numbers)
        on_image(image)
    total = mean_psnr([error for _, error in done], measured.uncertainty if measured else 0.0)
    described = setting(denoiser, shards, data, noise, protocol, device, assumed_level, len(numbers))
    noise_map = estimator.noise_correlation(numbers, measured)
    return {**described, "estimate": describe(source, total, done, residuals, noise_map, measured)}


def _best_source(images: ShardedDataset, numbers: list[int], noise: Noise) -> Source:
    if noise.family != "none":
        return "SURE, known noise"
    paired = all(SECOND in images.views(index) for index in numbers)
    return "second observation" if paired else "SURE, measured noise"


@dataclass(frozen=True)
class _Estimator:
    """Restores the images of a set one by one, and estimates their errors."""

    denoiser: Denoiser
    images: ShardedDataset
    noise: Noise
    protocol: Protocol
    source: Source
    assumed_level: float
    device: torch.device | str
    extent: Extent

    def estimate(self, index: int, measured: LocalNoise | None, probes: int) -> EstimatedImage:
        """Return an image as restored, with its estimated error."""
        name, rng = self.images.name(index), self._rng(index)
        noisy, level = self._observation(index, rng)
        restored = self._restore(noisy, level, rng)
        require_finite_image(restored, name, self.denoiser)
        if self.source == "second observation":
            second, second_level = self._second(index, rng)
            error = pair_error((noisy, second), (restored, self._restore(second, second_level, rng)))
        else:
            local = measured or known_noise(self.noise, level)
            error = sure(
                lambda moved: self._restore(moved, level, rng),
                noisy,
                restored,
                local,
                rng.stream("estimate"),
                probes=probes,
            )
        return EstimatedImage(name, noisy, restored, error, autocorrelation(_middle(noisy - restored, SIDE)))

    def measure(self) -> LocalNoise:
        """Return the noise of the noisy images as measured; white noise of one level where the images are too small."""
        chosen = spread(len(self.images), self.extent.measured)

        def load(number: int) -> Tensor:
            index = chosen[number]
            if self.noise.family == "none":  # without the level, which takes long to estimate
                noisy = as_channels(to_tensor(real_noisy(self.images, index)), self.denoiser.channels)
            else:
                noisy = self._whole(index, self._rng(index))[0].cpu()
            return _middle(noisy, self.extent.measured_side)

        try:
            return measure_local_noise(len(chosen), load)
        except UserError:
            variances = [estimate_sigma(load(number), self.denoiser.noise_patch) ** 2 for number in range(len(chosen))]
            return LocalNoise(0.0, sum(variances) / len(variances), uncertainty=WHITE_UNCERTAINTY)

    def noise_correlation(self, numbers: list[int], measured: LocalNoise | None) -> Tensor:
        """Return the correlation of the noise by lag: as measured, as known, or of what two observations differ in."""
        if self.source == "second observation":
            index = numbers[0]
            rng = self._rng(index)
            return autocorrelation(_middle(self._observation(index, rng)[0] - self._second(index, rng)[0], SIDE))
        return (measured or known_noise(self.noise, 1.0)).correlation_map(REACH)

    def _rng(self, index: int) -> Rng:
        return batch_rng(self.protocol.seed, 0, torch.tensor([index]), self.device)

    def _restore(self, noisy: Tensor, level: float, rng: Rng) -> Tensor:
        told = torch.full((1, 1, 1, 1), level * self.assumed_level, device=self.device)
        return self.protocol.quantise(restore_batch(self.denoiser, noisy[None], told, rng))[0]

    def _observation(self, index: int, rng: Rng) -> tuple[Tensor, float]:
        """Return what is restored of the noisy image that ``evaluate`` scores, and its level."""
        noisy, level = self._whole(index, rng)
        return self._cut(noisy), level

    def _cut(self, image: Tensor) -> Tensor:
        return image if self.extent.side is None else _middle(image, self.extent.side)

    def _whole(self, index: int, rng: Rng) -> tuple[Tensor, float]:
        pair = evaluation_pair(
            self.images, index, self.noise, self.denoiser.channels, rng, self.device, self.denoiser.noise_patch
        )
        return pair.noisy[0], float(pair.level)

    def _second(self, index: int, rng: Rng) -> tuple[Tensor, float]:
        if self.noise.family != "none":
            return self._observation(index, rng.stream("second observation"))
        views = self.images.views(index)
        if SECOND not in views:
            raise UserError(
                f"{self.images.name(index)} has no second observation (it has {', '.join(views)}); call it "
                f"NAME_{SECOND}, or leave the estimate to SURE."
            )
        pixels = to_tensor(self.images.pixels(index, SECOND))
        second = as_channels(pixels, self.denoiser.channels).to(self.device)
        return self._cut(second), estimate_sigma(pixels, self.denoiser.noise_patch)


def _has_clean(images: ShardedDataset, index: int) -> bool:
    return bool(set(REFERENCES) & set(images.views(index)))


def _middle(image: Tensor, side: int) -> Tensor:
    top, left = (max(0, size - side) // 2 for size in image.shape[-2:])
    return image[..., top : top + side, left : left + side]

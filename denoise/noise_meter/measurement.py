"""Measuring noise: the flattest blocks of many images, their covariances, and their variance against brightness."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from denoise.errors import UserError
from denoise.noise_meter.blocks import SIDE, SURFACE, Blocks, all_blocks, block_places, block_residuals
from denoise.noise_meter.line import fit_line

BINS = 16  # of brightness, equally wide
SHARE = 0.06  # of the blocks of a bin, the flattest of which are taken for noise
LEAST = 16  # blocks that are taken of a bin; one with fewer than FULL is left out
FULL = 64
SATURATED = (0.02, 0.1, 0.25)  # share of saturated values that a block may have: the least with which there are enough
ENOUGH = 2 * FULL
STRUCTURED = 2.0  # a bin is left out whose residuals have this many times more low frequencies than the flattest bins
REACH = 8  # the largest lag of the correlation, in pixels
CORRELATED = 0.2  # of neighbours; white noise of eight photographs was measured below 0.05, of sigma 5 below 0.16
LITTLE = 2.5 / 255  # sigma, up to which texture is taken for noise: images without noise were measured with 2 of 255
TINY = 1e-30  # of variances, where an image has no noise
FREEDOM = SIDE**2 / (SIDE**2 - SURFACE)


@dataclass(frozen=True)
class NoiseMeasurement:
    """The noise of images with values in [0, 1], of C channels."""

    images: int
    blocks: int  # from which the noise was measured
    saturated_share: float  # of saturated values that a block might have; above 0.02 the level is too low
    brightness: Tensor  # (K): of the bins that have flat blocks
    variance: Tensor  # (K): of the noise there
    slope: float  # variance = slope * brightness + offset
    offset: float
    correlation: Tensor  # (REACH + 1, 2 REACH + 1): by dy from 0 and dx from -REACH, 1 at dy = dx = 0
    channels: Tensor  # (C, C): correlation between channels
    places: Mapping[int, Tensor]  # by image: top and left in pixels of the blocks, (N, 2)

    def sigma(self, brightness: float | None = None) -> float:
        """Return the noise's standard deviation at a brightness, by default at the mean of the blocks."""
        at = self.brightness.mean().item() if brightness is None else brightness
        return math.sqrt(max(0.0, self.slope * at + self.offset))

    @property
    def neighbours(self) -> float:
        """The larger correlation of two values that lie beside or below each other."""
        return max(self.lag(0, 1), self.lag(1, 0))

    def lag(self, dy: int, dx: int) -> float:
        """Return the correlation of two values that are dy rows and dx columns apart."""
        down, right = (dy, dx) if dy >= 0 else (-dy, -dx)
        return float(self.correlation[down, right + REACH])


def measure_noise(count: int, load: Callable[[int], Tensor]) -> NoiseMeasurement:
    """Measure the noise of images together, from their flattest blocks.

    Blocks of 24x24 pixels lose their quadratic surface. Those that have the least variance left after a blur hold
    little but noise: 6 % of them in each of 16 ranges of brightness, of all images together, so that an image of
    texture alone contributes none.

    White noise is measured with a correlation of -0.03 to 0, and blurred noise 0.03 below the truth: the surface takes
    a hundredth of the noise with it, and the flattest blocks are those whose noise happens to be the least smooth.

    Args:
        count: number of images.
        load: returns image number N, (C, H, W) in [0, 1], all with equally many channels; it is called twice for each.

    Raises:
        UserError: too few blocks are flat and not saturated.
    """
    found = [all_blocks(load(number)) for number in range(count)]
    image = torch.cat([torch.full_like(blocks.number, number) for number, blocks in enumerate(found)])
    block, brightness, structure, saturated = (
        torch.cat([getattr(blocks, field.name) for blocks in found]) for field in fields(Blocks)
    )
    limit = _saturation_limit(saturated, count)
    bins = torch.where(saturated <= limit, (brightness * BINS).long().clamp(0, BINS - 1), -1)
    groups = [group for place in range(BINS) if len(group := _flattest(structure, bins == place))]
    if not groups:
        raise UserError(_too_small(len(block)))
    sums = [_Covariance() for _ in groups]
    for number in sorted(set(image[torch.cat(groups)].tolist())):
        pixels = load(number)
        for group, total in zip(groups, sums, strict=True):
            own = group[image[group] == number]
            if len(own):
                total.add(block_residuals(pixels, block[own]))
                total.places[number] = block_places(pixels, block[own])
    means = [(brightness[group].mean().item(), structure[group].mean().item()) for group in groups]
    return _measurement(count, limit, means, sums)


class _Covariance:
    """Sums of products over blocks of one brightness."""

    def __init__(self) -> None:
        self.blocks = 0
        self.lags = torch.zeros(REACH + 1, 2 * REACH + 1, dtype=torch.float64)
        self.channels = torch.zeros((), dtype=torch.float64)
        self.places: dict[int, Tensor] = {}  # by image

    def add(self, residual: Tensor) -> None:
        """Add the residuals of blocks (N, C, SIDE, SIDE)."""
        count, channels = residual.shape[:2]
        self.blocks += count
        for dy in range(REACH + 1):
            for dx in range(-REACH, REACH + 1):
                first, second = _overlap(residual, dy, dx)
                mean = (first * second).mean((1, 2, 3)).sum()
                self.lags[dy, dx + REACH] += mean
        flat = residual.transpose(0, 1).reshape(channels, -1)
        self.channels = self.channels + flat @ flat.T / SIDE**2

    @property
    def variance(self) -> float:
        """The variance of the noise, with the share that the surface has taken."""
        return FREEDOM * self.lags[0, REACH].item() / self.blocks


def _overlap(residual: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Return two views of blocks whose values are dy rows and dx columns apart; dy is not negative."""
    left, right = max(0, -dx), max(0, dx)
    first = residual[..., : SIDE - dy, left : SIDE - right]
    second = residual[..., dy:, right : SIDE - left]
    return first, second


def _saturation_limit(saturated: Tensor, count: int) -> float:
    """Return how large a share of saturated values a block may have: the least that leaves enough blocks."""
    wanted = ENOUGH * min(count, BINS)
    return next((limit for limit in SATURATED if (saturated <= limit).sum() >= wanted), SATURATED[-1])


def _flattest(structure: Tensor, within: Tensor) -> Tensor:
    """Return the indices of the flattest of some blocks, none where there are too few."""
    candidates = within.nonzero()[:, 0]
    if len(candidates) < FULL:
        return candidates[:0]
    kept = max(LEAST, round(SHARE * len(candidates)))
    return candidates[structure[candidates].argsort()[:kept]]


def _measurement(
    count: int, limit: float, means: Sequence[tuple[float, float]], sums: Sequence[_Covariance]
) -> NoiseMeasurement:
    """Return what the bins say together; those are left out whose flattest blocks hold structure."""
    ratios = torch.tensor(
        [
            structure / total.variance if total.variance else 0.0
            for (_, structure), total in zip(means, sums, strict=True)
        ],
        dtype=torch.float64,
    )
    flattest = ratios.sort().values[: max(1, len(ratios) // 3)].mean()
    kept = [number for number, ratio in enumerate(ratios.tolist()) if ratio <= STRUCTURED * flattest]
    weights = torch.tensor([sums[number].blocks for number in kept], dtype=torch.float64)
    brightness = torch.tensor([means[number][0] for number in kept], dtype=torch.float64)
    variance = torch.tensor([sums[number].variance for number in kept], dtype=torch.float64)
    slope, offset = fit_line(brightness, variance, weights)
    lags = _weighted([sums[number].lags / sums[number].lags[0, REACH].clamp_min(TINY) for number in kept], weights)
    covariance = [sums[number].channels / sums[number].channels.diagonal().mean().clamp_min(TINY) for number in kept]
    channels = _weighted(covariance, weights)
    scale = channels.diagonal().clamp_min(TINY).sqrt()
    return NoiseMeasurement(
        images=count,
        blocks=int(weights.sum()),
        saturated_share=limit,
        brightness=brightness,
        variance=variance,
        slope=slope,
        offset=offset,
        correlation=lags,
        channels=channels / torch.outer(scale, scale),
        places=_joined([sums[number].places for number in kept]),
    )


def _joined(places: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    """Return the places of several bins as one, by image."""
    images = sorted({image for part in places for image in part})
    return {image: torch.cat([part[image] for part in places if image in part]) for image in images}


def _weighted(values: Sequence[Tensor], weights: Tensor) -> Tensor:
    shares = (weights / weights.sum()).tolist()
    return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)


def _too_small(blocks: int) -> str:
    if blocks < FULL:
        return (
            f"the noise cannot be measured: the images hold {blocks} blocks of {SIDE}x{SIDE} pixels, and at least "
            f"{FULL} of about the same brightness are needed; give more or larger images."
        )
    return (
        "the noise cannot be measured: nearly all of the images lies at the ends of their range, where values were cut "
        "off; give images that are less dark or less bright."
    )

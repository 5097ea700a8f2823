"""The PSNR of a set from estimated errors of its images, and how far off it may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

CONFIDENCE = 0.9
BLOCK = 6  # pixels: a block's noise differs from its neighbour's by more than their errors do
DECIBELS = 10 / math.log(10)  # of a relative error


@dataclass(frozen=True)
class ErrorEstimate:
    """An estimate of the mean squared error of one restored image, of values in [0, 1]."""

    mse: float  # not positive where noise hides the error
    standard_error: float  # of the estimate, by the noise and the probes
    fidelity: float  # mean squared difference from what it was compared with

    @staticmethod
    def of(fidelity: Tensor, error: Tensor) -> "ErrorEstimate":
        """Return the means of two maps (C, H, W) of the values of an image.

        The standard error is by the differences of neighbouring blocks, in which an error that varies slowly over the
        image has little part.
        """
        return ErrorEstimate(error.mean().item(), _standard_error(error), fidelity.mean().item())

    @property
    def psnr(self) -> float | None:
        """PSNR in dB, None where the estimated error is not positive."""
        return -DECIBELS * math.log(self.mse) if self.mse > 0 else None


@dataclass(frozen=True)
class PsnrEstimate:
    """The mean PSNR of a set in dB, estimated, with its 90 % intervals."""

    psnr: float | None  # None where the error of no image could be told from zero
    interval: tuple[float, float] | None  # of the mean over these images
    interval_alike: tuple[float, float] | None  # of the mean over all such images; None of a single one
    images: int
    unresolved: int  # images whose estimated error is not positive: the mean is without them, and too low


def mean_psnr(images: Sequence[ErrorEstimate], variance_uncertainty: float = 0.0) -> PsnrEstimate:
    """Return the mean PSNR of images.

    Args:
        images: their estimated errors.
        variance_uncertainty: relative standard error of the variance of the noise, which all images share.
    """
    resolved = [image for image in images if image.mse > 0]
    values = [psnr for image in resolved if (psnr := image.psnr) is not None]
    if not values:
        return PsnrEstimate(None, None, None, len(images), len(images))
    count = len(values)
    mean = math.fsum(values) / count
    own = math.sqrt(math.fsum((DECIBELS * image.standard_error / image.mse) ** 2 for image in resolved)) / count
    shared = variance_uncertainty * DECIBELS * math.fsum(image.fidelity / image.mse - 1 for image in resolved) / count
    of_these = _around(mean, math.hypot(own, shared), None)
    alike = None
    if count > 1:
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
        alike = _around(mean, math.hypot(spread, shared), count - 1)
    return PsnrEstimate(mean, of_these, alike, len(images), len(images) - count)


def _around(mean: float, error: float, freedom: int | None) -> tuple[float, float]:
    """Return the interval by a standard error: of Student's t, or normal where ``freedom`` is None."""
    from scipy.stats import norm, t

    share = (1 + CONFIDENCE) / 2
    quantile = float(norm.ppf(share) if freedom is None else t.ppf(share, freedom))
    return mean - quantile * error, mean + quantile * error


def _standard_error(error: Tensor) -> float:
    """Return the standard error of the mean of a map (C, H, W), by the differences of neighbouring blocks."""
    flat = error.mean(0)
    rows, columns = (max(1, side // BLOCK) for side in flat.shape)
    height, width = (min(BLOCK, side) for side in flat.shape)
    blocks = flat[: rows * height, : columns * width].reshape(rows, height, columns, width).mean((1, 3))
    differences = [blocks.diff(dim=dim).square().flatten() for dim in (0, 1) if blocks.shape[dim] > 1]
    if not differences:
        return math.inf
    squares = sum(part.sum().item() for part in differences) / sum(map(len, differences))
    return math.sqrt(squares / 2 / blocks.numel())

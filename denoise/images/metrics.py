"""PSNR and two SSIMs of a restored image, on its own device. Every score must be shown with its protocol's name.

The SSIMs equal scikit-image's, that of Wang et al. 2004 at about a third of its time on a CPU.
"""

from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

BAND_VALUES, BAND_ROWS = 2**18, 64  # an image is scored in bands that stay in a cache, and of so many rows at least


@dataclass(frozen=True)
class _Window:
    """How an SSIM averages around a pixel, and what keeps its ratios finite."""

    weights: tuple[float, ...]  # of the pixels by their distance along a side
    c1: float
    c2: float
    correction: float = 1.0  # of variances and covariances

    @property
    def radius(self) -> int:
        return len(self.weights) - 1

    @property
    def side(self) -> int:
        return 2 * self.radius + 1


def _gaussian(sigma: float, radius: int) -> tuple[float, ...]:
    tail = [exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
    return tuple(weight / (tail[0] + 2 * sum(tail[1:])) for weight in tail)


WANG = _Window(_gaussian(1.5, 5), 0.01**2, 0.03**2)
# Sample variances of 49 pixels, and constants for a data range of 2.
UNIFORM = _Window((1 / 7,) * 4, (2 * 0.01) ** 2, (2 * 0.03) ** 2, 49 / 48)


def psnr(restored: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of one image (C, H, W) in [0, 1], in float64; infinite for equal images."""
    error = (restored.detach().double() - clean.detach().double()).square_().mean()
    return float(10 * torch.log10(1 / error))


def bias(restored: Tensor, clean: Tensor) -> float:
    """Mean of restored - clean over one image (C, H, W), in its own unit, in float64: above 0 if it is too bright."""
    return float((restored.detach().double() - clean.detach().double()).mean())


def ssim(restored: Tensor, clean: Tensor) -> float:
    """Structural similarity of one image (C, H, W) in [0, 1], in float64, mean over channels (Wang et al. 2004).

    Gaussian window of sigma 1.5 and 11 pixels as in the paper, where it lies inside the image; images smaller than that
    are extended by reflection.
    """
    return _mean_similarity(restored, clean, WANG)


def ssim_uniform(restored: Tensor, clean: Tensor) -> float:
    """Structural similarity with scikit-image's defaults for floats: not comparable with ``ssim``.

    A uniform window of 7x7 pixels, sample variances, and a data range of 2, as if values lay in [-1, 1]: about 0.13
    higher than ``ssim`` on photographs in [0, 1]. Programs that call scikit-image without ``data_range`` report it.
    """
    return _mean_similarity(restored, clean, UNIFORM)


def _mean_similarity(restored: Tensor, clean: Tensor, window: _Window) -> float:
    images = [_extend(image.detach(), window.side) for image in (restored, clean)]
    channels, height, width = images[0].shape
    border = 2 * window.radius
    rows = max(BAND_ROWS, BAND_VALUES // (channels * width))
    total = torch.zeros((), dtype=torch.float64, device=restored.device)
    for top in range(0, height - border, rows):
        band = slice(top, top + rows + border)
        total += _similarity(images[0][:, band].double(), images[1][:, band].double(), window).sum()
    return float(total / (channels * (height - border) * (width - border)))


def _similarity(x: Tensor, y: Tensor, window: _Window) -> Tensor:
    """Return the SSIM at every pixel that the whole window fits around."""
    mean_x, mean_y = _blur(x, window), _blur(y, window)
    product, squares = mean_x * mean_y, mean_x.square_() + mean_y.square_()
    covariance = _blur(x * y, window).sub_(product).mul_(window.correction)
    variances = _blur(x * x + y * y, window).sub_(squares).mul_(window.correction)
    above = product.mul_(2).add_(window.c1).mul_(covariance.mul_(2).add_(window.c2))
    return above.div_(squares.add_(window.c1).mul_(variances.add_(window.c2)))


def _blur(values: Tensor, window: _Window) -> Tensor:
    """Return the means over the window, as sums of shifted copies: convolutions of float64 take longer on a CPU."""
    radius = window.radius
    for dim in (-2, -1):
        size = values.shape[dim] - 2 * radius
        blurred = values.narrow(dim, radius, size) * window.weights[0]
        for offset, weight in enumerate(window.weights[1:], 1):
            blurred.add_(values.narrow(dim, radius - offset, size), alpha=weight)
            blurred.add_(values.narrow(dim, radius + offset, size), alpha=weight)
        values = blurred
    return values


def _extend(image: Tensor, least: int) -> Tensor:
    """Extend sides below ``least`` to it, at the bottom and right, by reflection that repeats the border."""
    for dim in (-2, -1):
        size = image.shape[dim]
        if size < least:
            position = torch.arange(least, device=image.device) % (2 * size)
            image = image.index_select(dim, torch.minimum(position, 2 * size - 1 - position))
    return image

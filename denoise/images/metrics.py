"""PSNR and SSIM of a restored image, on its own device. Every score must be shown with its protocol's name.

The SSIM equals scikit-image's with the settings of Wang et al. 2004, at about a third of its time on a CPU.
"""

from math import exp

import torch
from torch import Tensor

RADIUS, SIGMA = 5, 1.5  # of the SSIM's Gaussian window, in pixels
WINDOW = 2 * RADIUS + 1
C1, C2 = 0.01**2, 0.03**2  # what keeps the SSIM's ratios finite, for values in [0, 1]
BAND_VALUES, BAND_ROWS = 2**18, 64  # an image is scored in bands that stay in a cache, and of so many rows at least

_tail = [exp(-0.5 * (offset / SIGMA) ** 2) for offset in range(RADIUS + 1)]
WEIGHTS = [weight / (_tail[0] + 2 * sum(_tail[1:])) for weight in _tail]  # of the pixels by their distance


def psnr(restored: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of one image (C, H, W) in [0, 1], in float64; infinite for equal images."""
    error = (restored.detach().double() - clean.detach().double()).square_().mean()
    return float(10 * torch.log10(1 / error))


def ssim(restored: Tensor, clean: Tensor) -> float:
    """Structural similarity of one image (C, H, W) in [0, 1], in float64, mean over channels (Wang et al. 2004).

    Gaussian window of sigma 1.5 and 11 pixels as in the paper, where it lies inside the image; images smaller than that
    are extended by reflection.
    """
    images = [_extend(image.detach()) for image in (restored, clean)]
    channels, height, width = images[0].shape
    rows = max(BAND_ROWS, BAND_VALUES // (channels * width))
    total = torch.zeros((), dtype=torch.float64, device=restored.device)
    for top in range(0, height - 2 * RADIUS, rows):
        band = slice(top, top + rows + 2 * RADIUS)
        total += _similarity(images[0][:, band].double(), images[1][:, band].double()).sum()
    return float(total / (channels * (height - 2 * RADIUS) * (width - 2 * RADIUS)))


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """Return the SSIM at every pixel that the whole window fits around."""
    mean_x, mean_y = _blur(x), _blur(y)
    product, squares = mean_x * mean_y, mean_x.square_() + mean_y.square_()
    covariance, variances = _blur(x * y).sub_(product), _blur(x * x + y * y).sub_(squares)
    above = product.mul_(2).add_(C1).mul_(covariance.mul_(2).add_(C2))
    return above.div_(squares.add_(C1).mul_(variances.add_(C2)))


def _blur(values: Tensor) -> Tensor:
    """Return the means over the window, as sums of shifted copies: convolutions of float64 take longer on a CPU."""
    for dim in (-2, -1):
        size = values.shape[dim] - 2 * RADIUS
        blurred = values.narrow(dim, RADIUS, size) * WEIGHTS[0]
        for offset, weight in enumerate(WEIGHTS[1:], 1):
            blurred.add_(values.narrow(dim, RADIUS - offset, size), alpha=weight)
            blurred.add_(values.narrow(dim, RADIUS + offset, size), alpha=weight)
        values = blurred
    return values


def _extend(image: Tensor) -> Tensor:
    """Extend sides below the window to it, at the bottom and right, by reflection that repeats the border."""
    for dim in (-2, -1):
        size = image.shape[dim]
        if size < WINDOW:
            position = torch.arange(WINDOW, device=image.device) % (2 * size)
            image = image.index_select(dim, torch.minimum(position, 2 * size - 1 - position))
    return image

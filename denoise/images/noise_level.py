"""Estimating the noise level of a single image, for real noise of unknown strength.

G. Chen, F. Zhu and P. A. Heng, "An efficient statistical method for image noise level estimation", ICCV 2015: small
patches of clean images lie near a subspace, so the smallest eigenvalues of their covariance are those of the noise
alone. Sorted eigenvalues of noise lie evenly around their mean; the largest of all are dropped until this holds.
"""

import torch
from torch import Tensor

from denoise.errors import UserError

PATCH = 8  # side in pixels, as in the paper
STRIDES = (3, 2, 1)  # 3 as in the public implementations
MIN_PATCH = 2
# Too few patches per dimension bias the estimate down: on 64x64 crops of Kodak by 4 % at 17, 1 % at 32, nothing at 50.
ENOUGH = 50  # patches per dimension; an image with fewer gets a smaller stride
REQUIRED = 32  # patches per dimension; an image with fewer at stride 1 gets smaller patches
MAX_PATCHES = 100_000  # of a large image
ROWS = 16  # of patches that are held in memory at once


def estimate_sigma(noisy: Tensor, side: int = PATCH) -> float:
    """Return the standard deviation of the noise of one image (C, H, W) in [0, 1], in the same unit.

    One sigma stands for all channels, as if the noise were Gaussian and white. Texture that resembles noise counts as
    noise: little in colour, where the channels share texture (Kodak at sigma 10 to 50 of 255: 0.5 % too high on
    average, 2.6 % at worst); in grey the estimate is too high at low noise (by 13 % at sigma 10, 2.5 % at 25, 1 % at
    50).

    Args:
        noisy: the image.
        side: of the patches, in pixels; they are smaller where the image has too few of them.

    Raises:
        UserError: the image is too small: 21x21 pixels are enough in colour, 13x13 in grey.
    """
    channels, height, width = noisy.shape
    patch, stride = _layout(channels, height, width, side)
    eigenvalues = torch.linalg.eigvalsh(_covariance(noisy.double(), patch, stride))
    return _noise_variance(eigenvalues).clamp_min(0).sqrt().item()


def _layout(channels: int, height: int, width: int, side: int = PATCH) -> tuple[int, int]:
    """Return side and stride of the patches: the wanted side and the published stride if the image is large enough."""
    sparse = int((height * width / MAX_PATCHES) ** 0.5) + 1
    if sparse > STRIDES[0]:
        return side, sparse
    for patch in range(side, MIN_PATCH - 1, -1):
        for stride, minimum in [(stride, ENOUGH) for stride in STRIDES] + [(1, REQUIRED)]:
            rows, columns = ((pixels - patch) // stride + 1 for pixels in (height, width))
            if min(rows, columns) > 0 and rows * columns >= minimum * channels * patch**2:
                return patch, stride
    raise UserError(
        f"the noise level of an image of {width}x{height} pixels cannot be estimated: it is too small; "
        "expected 21x21 or more, take a larger image or crop."
    )


def _covariance(image: Tensor, patch: int, stride: int) -> Tensor:
    """Return the covariance of all patches, (C patch^2, C patch^2)."""
    centred = image - image.mean((1, 2), keepdim=True)  # products of small numbers lose fewer digits
    patches = centred.unfold(1, patch, stride).unfold(2, patch, stride).permute(1, 2, 0, 3, 4)
    rows, columns = patches.shape[:2]
    size = patches[0, 0].numel()
    total, products = image.new_zeros(size), image.new_zeros(size, size)
    for first in range(0, rows, ROWS):
        vectors = patches[first : first + ROWS].reshape(-1, size)
        total += vectors.sum(0)
        products += vectors.T @ vectors
    mean = total / (rows * columns)
    return products / (rows * columns) - torch.outer(mean, mean)


def _noise_variance(eigenvalues: Tensor) -> Tensor:
    """Return the mean of the smallest eigenvalues (ascending), as many as have a mean not above their median.

    The public implementations test for equally many values above and below the mean, and can step over that point; the
    test here, "at least as many above", always finds the crossing. The largest eigenvalue is never counted.
    """
    count = torch.arange(1, len(eigenvalues), device=eigenvalues.device)
    mean = eigenvalues[:-1].cumsum(0) / count
    below = torch.searchsorted(eigenvalues, mean).minimum(count)
    above = count - torch.searchsorted(eigenvalues, mean, right=True).minimum(count)
    return mean[(above >= below).nonzero()[-1, 0]]

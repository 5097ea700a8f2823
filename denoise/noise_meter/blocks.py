"""Blocks of a noisy image, and how much structure each holds besides its noise."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

SIDE = 24  # of a block, in pixels
STRIDE = 12
BLUR = 2.0  # standard deviation in pixels of the Gaussian that leaves structure and removes most of the noise
MARGIN = 3 / 255  # a value nearer than this to 0 or 1 may have been cut off there
SURFACE = 6  # terms of a quadratic surface
AT_ONCE = 4096  # blocks that are held in memory at once


@dataclass(frozen=True)
class Blocks:
    """Blocks of one image, N of them, of C channels."""

    number: Tensor  # (N): which blocks of the image they are
    brightness: Tensor  # (N): mean value over the channels
    structure: Tensor  # (N): variance that is left after a blur
    saturated: Tensor  # (N): share of values at the end of the range, of the channel that has most


def all_blocks(image: Tensor) -> Blocks:
    """Return the blocks of an image (C, H, W) in [0, 1], overlapping by half."""
    count = _count(image)
    if not count:
        return NONE
    parts = []
    for number in torch.split(torch.arange(count), AT_ONCE):
        values = _values(image, number)
        ends = ((values <= MARGIN) | (values >= 1 - MARGIN)).double().mean((2, 3)).amax(1)
        blurred = _blurred(_residuals(values)).square().mean((1, 2, 3))
        parts.append((number, values.mean((1, 2, 3)), blurred, ends))
    return Blocks(*(torch.cat(part) for part in zip(*parts, strict=True)))


def block_places(image: Tensor, number: Tensor) -> Tensor:
    """Return the top and the left of some blocks of an image, (N, 2) in pixels."""
    columns = _layout(image)[1]
    return STRIDE * torch.stack([number // columns, number % columns], dim=1)


def block_residuals(image: Tensor, number: Tensor) -> Tensor:
    """Return some blocks of an image (N, C, SIDE, SIDE), each less the quadratic surface that fits it best."""
    return _residuals(_values(image, number))


def _residuals(values: Tensor) -> Tensor:
    flat, basis = values.flatten(2), surface()
    return (flat - (flat @ basis) @ basis.T).view_as(values)


def _count(image: Tensor) -> int:
    rows, columns = _layout(image)
    return rows * columns


def _layout(image: Tensor) -> tuple[int, int]:
    rows, columns = (max(0, (side - SIDE) // STRIDE + 1) for side in image.shape[1:])
    return rows, columns


def _values(image: Tensor, number: Tensor) -> Tensor:
    """Return blocks by number, (N, C, SIDE, SIDE) in double precision."""
    columns = _layout(image)[1]
    windows = image.unfold(1, SIDE, STRIDE).unfold(2, SIDE, STRIDE)
    return windows[:, number // columns, number % columns].transpose(0, 1).double()


def _blurred(blocks: Tensor) -> Tensor:
    matrix = _blur()
    return matrix @ blocks @ matrix.T


@cache
def surface() -> Tensor:
    """Return an orthonormal basis of the quadratic surfaces over a block, (SIDE^2, SURFACE)."""
    axis = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1)
    basis: Tensor = torch.linalg.qr(terms.view(-1, SURFACE)).Q
    return basis


@cache
def _blur() -> Tensor:
    """Return the matrix (SIDE, SIDE) that blurs along one axis of a block; at its border the weights are scaled."""
    axis = torch.arange(SIDE, dtype=torch.float64)
    weights = torch.exp(-(axis[:, None] - axis).square() / (2 * BLUR**2))
    return weights / weights.sum(1, keepdim=True)


NONE = Blocks(*(torch.zeros(0, dtype=dtype) for dtype in (torch.long, *[torch.float64] * 3)))

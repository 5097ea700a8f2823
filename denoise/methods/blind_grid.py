"""Every n-th pixel hidden at once, filled in from its neighbours (Noise2Self, Blind2Unblind)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def grid_mask(image: Tensor, cell: int, phase: Tensor) -> Tensor:
    """Return (P, 1, H, W), True at one pixel of every cell of an image (..., H, W).

    Args:
        image: whose sides count.
        cell: the side of a cell; of one that the border cuts the part that is there counts.
        phase: (P,) which pixel of the cell, 0 to cell^2 - 1, row by row.
    """
    height, width = image.shape[-2:]
    rows = torch.arange(height, device=phase.device) % cell
    columns = torch.arange(width, device=phase.device) % cell
    place = rows[:, None] * cell + columns
    return (place == phase[:, None, None]).unsqueeze(1)


def fill(image: Tensor, mask: Tensor) -> Tensor:
    """Return a batch (B, C, H, W) with the average of the neighbours where the mask is True."""
    return torch.where(mask, donut(image), image)


def donut(image: Tensor) -> Tensor:
    """Return for each pixel the weighted mean of its eight neighbours: weight 2 beside, 1 across the corner.

    At the border the mean is over the neighbours that there are (the code of Batson and Royer 2019, and of Wang et al.
    2022 after it, takes those outside for black, which darkens the border by up to 7/12).
    """
    return _sum_around(image) / _sum_around(torch.ones_like(image[:1, :1])).clamp_min(1)


def _sum_around(image: Tensor) -> Tensor:
    # Sums rather than a convolution, which autocast would compute in 8 bits of precision.
    height, width = image.shape[-2:]
    framed = F.pad(image, (1, 1, 1, 1))

    def moved(down: int, right: int) -> Tensor:
        return framed[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    beside = moved(-1, 0) + moved(1, 0) + moved(0, -1) + moved(0, 1)
    return 2 * beside + moved(-1, -1) + moved(-1, 1) + moved(1, -1) + moved(1, 1)

"""Every n-th pixel hidden at once, filled in from its neighbours (Noise2Self, Blind2Unblind)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def grid_mask(image: Tensor, cell: int, phase: Tensor) -> Tensor:
    """Return (P, 1, H, W), True at one pixel of every cell of an image (..., H, W).

    Args:
        image: only its sides are used.
        cell: the side of a cell; cells at the border may be cut.
        phase: (P,) which pixel of the cell, 0 to cell^2 - 1, row by row.
    """
    height, width = image.shape[-2:]
    rows = torch.arange(height, device=phase.device) % cell
    columns = torch.arange(width, device=phase.device) % cell
    position = rows[:, None] * cell + columns  # within the cell
    return (position == phase[:, None, None]).unsqueeze(1)


def fill_hidden(image: Tensor, mask: Tensor) -> Tensor:
    """Return a batch (B, C, H, W) in which each pixel under the mask is the mean of its neighbours."""
    return torch.where(mask, neighbour_mean(image), image)


def neighbour_mean(image: Tensor) -> Tensor:
    """Return for each pixel the weighted mean of its eight neighbours: weight 2 beside, 1 across the corner.

    At the border the mean is over the neighbours inside the image (the code of Batson and Royer 2019, and of Wang et
    al. 2022 after it, counts those outside as black, which darkens the border by up to 7/12).
    """
    return _sum_around(image) / _sum_around(torch.ones_like(image[:1, :1])).clamp_min(1)


def _sum_around(image: Tensor) -> Tensor:
    # Sums rather than a convolution, which autocast would compute in bfloat16.
    height, width = image.shape[-2:]
    padded = F.pad(image, (1, 1, 1, 1))

    def shifted(down: int, right: int) -> Tensor:
        return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    beside = shifted(-1, 0) + shifted(1, 0) + shifted(0, -1) + shifted(0, 1)
    return 2 * beside + shifted(-1, -1) + shifted(-1, 1) + shifted(1, -1) + shifted(1, 1)

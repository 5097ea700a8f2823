"""What a denoiser has removed: the residual, noisy less restored, and whether more than noise is in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from denoise.noise_meter import REACH

TINY = 1e-30  # of a variance, where nothing was removed


@dataclass(frozen=True)
class ResidualStructure:
    """The autocorrelation of residuals beside that of their noise."""

    residual: Tensor  # (2 REACH + 1, 2 REACH + 1), lag (0, 0) in the middle
    noise: Tensor  # the same of the noise
    excess: float  # largest difference of the two, by size, at a lag that is not zero; with its sign
    lag: tuple[int, int]  # where: rows, columns


def autocorrelation(residual: Tensor) -> Tensor:
    """Return the correlation of a residual (C, H, W) by lag up to REACH, mean over channels, (2 REACH + 1) squared.

    The mean of each channel is subtracted; only values inside the image are paired;
    lags that no two values have are 0.
    """
    values = (residual - residual.mean((1, 2), keepdim=True)).double()
    variance = values.square().mean()
    lags = torch.zeros(2 * REACH + 1, 2 * REACH + 1, dtype=torch.float64)
    height, width = values.shape[1:]
    down, across = min(REACH, height - 1), min(REACH, width - 1)
    for dy in range(down + 1):
        for dx in range(-across, across + 1):
            left, right = max(0, -dx), max(0, dx)
            first = values[:, : height - dy, left : width - right]
            second = values[:, dy:, right : width - left]
            mean = (first * second).mean() / variance.clamp_min(TINY)
            lags[REACH + dy, REACH + dx] = lags[REACH - dy, REACH - dx] = mean
    return lags


def structure(residual: Tensor, noise: Tensor) -> ResidualStructure:
    """Return where two autocorrelations (2 REACH + 1 squared) of a residual and of noise differ most."""
    difference = residual - noise
    difference[REACH, REACH] = 0
    place = int(difference.abs().argmax())
    row, column = divmod(place, 2 * REACH + 1)
    return ResidualStructure(residual, noise, difference[row, column].item(), (row - REACH, column - REACH))

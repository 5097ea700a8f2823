"""A line through the variances of noise at several brightnesses, some of which are wrong."""

import torch
from torch import Tensor

ROUNDS = 20
HUBER = 1.5  # in standard deviations: a larger error counts in proportion and not squared
LEAST_ERROR = 0.03  # relative; smaller errors of all points are no reason to mistrust one
NORMAL = 1.4826  # standard deviation of normal errors over the median of their sizes
TINY = 1e-12


def fit_line(x: Tensor, y: Tensor, weights: Tensor) -> tuple[float, float]:
    """Return slope and offset of the line y = slope x + offset through positive points (K), at least one.

    The error of a variance is proportional to it, so relative errors are minimised, by Huber's function. Points that
    span less than a tenth of the range of x, 0 to 1, cannot tell a slope: it is 0 then.
    """
    if (x.max() - x.min()).item() < 0.1:
        return 0.0, ((weights * y).sum() / weights.sum()).item()
    terms = torch.stack([x, torch.ones_like(x)], dim=1)
    line = torch.zeros(2, dtype=x.dtype)
    trusted, scale = weights, y
    for _ in range(ROUNDS):
        roots = (trusted.sqrt() / scale.clamp_min(TINY))[:, None]
        line = torch.linalg.lstsq(terms * roots, y[:, None] * roots).solution[:, 0]
        scale = (terms @ line).clamp_min(TINY)
        errors = ((y - scale) / scale).abs()
        spread = max(NORMAL * errors.median().item(), LEAST_ERROR)
        trusted = weights * (HUBER * spread / errors.clamp_min(TINY)).clamp_max(1)
    return line[0].item(), line[1].item()

"""Losses between restored and target images, with masks."""

from typing import Literal

from torch import Tensor

LossName = Literal["l1", "l2", "l0"]
EPSILON = 1e-8  # of the annealed L0 loss
# The progress of training at which a loss is validated. It is the same at every validation of a run, so that these
# compare: the end of training, or for l0, which has become the constant 1 there, the middle, where its exponent is 1.
VALIDATION_PROGRESS: dict[LossName, float] = {"l1": 1.0, "l2": 1.0, "l0": 0.5}


def distance(
    kind: LossName,
    restored: Tensor,
    target: Tensor,
    *,
    progress: float | Tensor = 0.0,
    mask: Tensor | None = None,
    final_exponent: float = 0.0,
) -> Tensor:
    """Return the mean difference of two batches (B, C, H, W), in float32 whatever the autocast type.

    l1 is the mean absolute, l2 the mean squared difference, l0 the mean of (|difference| + 1e-8)^gamma with gamma
    falling from 2 by 2 over training, but not below ``final_exponent`` (Lehtinen et al. 2018, section 3, go to 0, the
    code of Laine et al. 2019 to 0.5). With a mask (1 = counted, broadcast over channels) each sample's mean is over its
    counted values; a mask (B, 1, 1, 1) counts all values.
    """
    difference = (restored.float() - target.float()).abs()
    if kind == "l2":
        difference = difference.square()
    elif kind == "l0":
        difference = (difference + EPSILON) ** limited(2 - 2 * progress, final_exponent, 2)
    if mask is None or mask.shape[1:] == (1, 1, 1):
        return difference.mean()
    return masked_mean(difference, mask)


def limited(value: float | Tensor, low: float, high: float) -> float | Tensor:
    """Return what depends on the progress of training, a number or a tensor, limited to a range."""
    return value.clamp(low, high) if isinstance(value, Tensor) else min(max(value, low), high)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over samples of each sample's mean over its counted values.

    Averaging each sample first keeps the loss of a global batch the same however it is divided between ranks. A sample
    without any counted value counts as 0.
    """
    counted = mask.float().expand_as(values)
    per_sample = (values * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp_min(1)
    return per_sample.mean()

"""What a restored picture is compared by."""

from typing import Literal

from torch import Tensor

LossName = Literal["l1", "l2"]


def distance(kind: LossName, restored: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute (l1) or mean squared (l2) difference, in float32 whatever the autocast type."""
    difference = restored.float() - target.float()
    return difference.abs().mean() if kind == "l1" else difference.square().mean()

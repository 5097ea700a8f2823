"""Noise2Noise: learn from pairs of noisy images of the same scene (Lehtinen et al., ICML 2018)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.losses import LossName, distance
from denoise.rng import Rng


@dataclass(frozen=True)
class Noise2Noise(Method):
    """Map one noisy observation x^ of an image to another, independent one y^.

        L = mean (f(x^) - y^)^2                                        (section 2)
        L = 1/2 mean (f(x^) - y^)^2 + 1/2 mean (f(y^) - x^)^2          ``bidirectional``

    or with another distance (``loss_name``); the L2 minimiser is E[y^ | x^], which for noise of mean zero is the
    expected clean image. Pixels of the target that are known to be lost do not count in the mean
    (multiplicative Bernoulli noise, section 3.3); with ``masked`` off they count, and the L2 minimiser is (1 - p) times
    the clean image, too dark.
    """

    loss_name: LossName = "l2"
    bidirectional: bool = False  # half the loss of each direction: two forward passes a step
    swap: bool = False  # augmentation: each sample draws which of the two is its input
    masked: bool = True  # lost pixels of the target do not count
    needs: ClassVar[tuple[View, ...]] = ("noisy", "noisy2", "mask", "mask2")

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return one observation as input, the other as target, each with the mask of its valid pixels."""
        pair = {
            "input": sample["noisy"],
            "target": sample["noisy2"],
            "input_mask": sample["mask"],
            "target_mask": sample["mask2"],
        }
        if not self.swap:
            return pair
        swapped = rng.stream("swap").integers(2, 1, 1, 1).bool()
        return {
            "input": torch.where(swapped, pair["target"], pair["input"]),
            "target": torch.where(swapped, pair["input"], pair["target"]),
            "input_mask": torch.where(swapped, pair["target_mask"], pair["input_mask"]),
            "target_mask": torch.where(swapped, pair["input_mask"], pair["target_mask"]),
        }

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the distance of the output to the second observation, or the mean of both directions."""

        def one_direction(input: str, target: str) -> Tensor:
            mask = batch[f"{target}_mask"] if self.masked else None
            return distance(self.loss_name, net(batch[input]), batch[target], progress=progress, mask=mask)

        forward = one_direction("input", "target")
        return {"loss": 0.5 * (forward + one_direction("target", "input")) if self.bidirectional else forward}

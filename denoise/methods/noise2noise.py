"""Noise2Noise: learn from pairs of noisy images of the same scene (Lehtinen et al., ICML 2018)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.losses import LossName, distance

if TYPE_CHECKING:
    from denoise.rng import Rng


@dataclass(frozen=True)
class Noise2Noise(Method):
    """Map one noisy observation to another, independent one; the L2 minimiser is the clean expectation (section 2).

    Pixels that the target is known to have lost do not count (multiplicative Bernoulli noise, section 3.3).
    """

    loss_name: LossName = "l2"
    bidirectional: bool = False  # half the loss of each direction: two forward passes a step
    swap: bool = False  # augmentation: which of the two is the input is drawn for every sample
    needs: ClassVar[tuple[View, ...]] = ("noisy", "noisy2", "mask", "mask2")

    def make_batch(self, sample: Views, rng: "Rng") -> Batch:
        """Return one observation as input, the other as target, each with the mask of its valid pixels."""
        pair = {
            "input": sample["noisy"],
            "target": sample["noisy2"],
            "input_mask": sample["mask"],
            "target_mask": sample["mask2"],
        }
        if not self.swap:
            return pair
        turned = rng.stream("swap").integers(2, 1, 1, 1).bool()
        return {
            "input": torch.where(turned, pair["target"], pair["input"]),
            "target": torch.where(turned, pair["input"], pair["target"]),
            "input_mask": torch.where(turned, pair["target_mask"], pair["input_mask"]),
            "target_mask": torch.where(turned, pair["input_mask"], pair["target_mask"]),
        }

    def loss(self, net: nn.Module, batch: Batch, progress: float) -> Batch:
        """Return the distance of the output to the second observation, or the mean of both directions."""

        def one_way(source: str, target: str) -> Tensor:
            restored = net(batch[source])
            return distance(self.loss_name, restored, batch[target], progress=progress, mask=batch[f"{target}_mask"])

        forth = one_way("input", "target")
        return {"loss": 0.5 * (forth + one_way("target", "input")) if self.bidirectional else forth}

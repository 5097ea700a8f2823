"""Noise2Noise: learn from pairs of noisy pictures of the same scene (Lehtinen et al., ICML 2018)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from denoise.losses import LossName, distance
from denoise.methods.base import Batch, View, Views

if TYPE_CHECKING:
    from denoise.rng import Rng


@dataclass(frozen=True)
class Noise2Noise:
    """Map one noisy observation to another, independent one; the L2 minimiser is the clean expectation (section 2)."""

    loss_name: LossName = "l2"
    needs: ClassVar[tuple[View, ...]] = ("noisy", "noisy2")

    def make_batch(self, sample: Views, rng: "Rng") -> Batch:
        """Return one observation as input, the other as target."""
        return {"input": sample["noisy"], "target": sample["noisy2"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float) -> Batch:
        """Return the distance of the output to the second observation."""
        return {"loss": distance(self.loss_name, net(batch["input"]), batch["target"])}

    def predict(self, net: nn.Module, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        """Return the net's output."""
        restored: Tensor = net(noisy)
        return restored

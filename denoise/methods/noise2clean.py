"""Noise2Clean: ordinary supervised denoising, the bound that methods without clean images are measured against."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.losses import LossName, distance
from denoise.rng import Rng


@dataclass(frozen=True)
class Noise2Clean(Method):
    """Map a noisy image y to its clean one x; the only method that sees clean images.

        L = mean (f(y) - x)^2

    or another distance of the two (``loss_name``; see ``losses.distance``).
    """

    loss_name: LossName = "l2"
    needs: ClassVar[tuple[View, ...]] = ("noisy", "clean")

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the noisy image as input, the clean one as target."""
        return {"input": sample["noisy"], "target": sample["clean"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the distance of the output to the clean image."""
        return {"loss": distance(self.loss_name, net(batch["input"]), batch["target"], progress=progress)}

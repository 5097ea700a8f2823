"""Noisier2Noise: learn to take added noise off a noisy image (Moran et al., CVPR 2020)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.level import require_level
from denoise.methods.losses import LossName, distance
from denoise.rng import Rng


@dataclass(frozen=True)
class Noisier2Noise(Method):
    """Map a doubly noisy image Z = Y + M to the noisy image Y.

        L = mean (f(Z) - Y)^2,    M = alpha sigma m,    m standard normal

        restored = ((1 + alpha^2) f(Z) - Z) / alpha^2          with alpha 1: 2 f(Z) - Z

    The L2 minimiser is E[Y | Z], of which the second line makes E[X | Z], the clean image, where the noise is Gaussian.
    The network is fed a doubly noisy image at test too, as in the paper, because it has been trained on no other; so
    the image is restored from more noise than it has. The paper takes one pass; more ``passes``, each with its own M,
    reduce by averaging what M adds.
    """

    alpha: Annotated[float, Field(gt=0)] = 1.0  # sigma of the added noise over sigma of the noise
    passes: Annotated[int, Field(ge=1, le=10_000)] = 1  # doubly noisy images that are averaged to restore one
    loss_name: LossName = "l2"  # the second line above holds for l2
    needs: ClassVar[tuple[View, ...]] = ("noisy", "level")
    families: ClassVar[tuple[str, ...] | None] = ("gauss", "none")

    def test_time_passes(self) -> int:
        """Return how many doubly noisy images are averaged."""
        return self.passes

    def needs_level(self) -> bool:
        """Return True: as much noise is added at test as in training."""
        return True

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the doubly noisy image as input, the noisy one as target."""
        return {"input": self._noisier(sample["noisy"], sample["level"], rng), "target": sample["noisy"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the distance of the output to the noisy image."""
        return {"loss": distance(self.loss_name, net(batch["input"]), batch["target"], progress=progress)}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the corrected output for a doubly noisy image; the caller averages ``passes`` of these."""
        noisier = self._noisier(noisy, require_level(level, "noisier2noise"), rng)
        squared = self.alpha**2
        restored: Tensor = ((1 + squared) * net(noisier).float() - noisier) / squared
        return restored

    def _noisier(self, noisy: Tensor, level: Tensor, rng: Rng) -> Tensor:
        return noisy + self.alpha * level * rng.stream("noisier").normal(*noisy.shape[1:])

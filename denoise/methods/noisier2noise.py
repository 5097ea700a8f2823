"""Noisier2Noise: learn to take added noise off a noisy image (Moran et al., CVPR 2020)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.level import known
from denoise.methods.losses import LossName, distance

if TYPE_CHECKING:
    from denoise.rng import Rng


@dataclass(frozen=True)
class Noisier2Noise(Method):
    """Map a doubly noisy image z = y + alpha sigma m, m standard normal, to the noisy image y.

    The L2 minimiser is E[y | z], and for Gaussian noise E[clean | z] = ((1 + alpha^2) E[y | z] - z) / alpha^2; with
    alpha 1 that is 2 E[y | z] - z. At test the network is fed a doubly noisy image too, as in the paper, because it
    has seen no other. The restored image is therefore an estimate from more noise than was there. One
    pass is the paper's; more ``passes``, each with its own added noise, average what that noise costs.
    """

    alpha: Annotated[float, Field(gt=0)] = 1.0  # sigma of the added noise over sigma of the noise
    passes: Annotated[int, Field(ge=1)] = 1  # doubly noisy images that are averaged to restore one
    loss_name: LossName = "l2"  # the correction above holds for l2
    needs: ClassVar[tuple[View, ...]] = ("noisy", "level")
    families: ClassVar[tuple[str, ...] | None] = ("gauss", "none")

    def passes_at_test(self) -> int:
        """Return how many doubly noisy images are averaged."""
        return self.passes

    def needs_level(self) -> bool:
        """Return True: as much noise is added at test as in training."""
        return True

    def make_batch(self, sample: Views, rng: "Rng") -> Batch:
        """Return the doubly noisy image as input, the noisy one as target."""
        return {"input": self._noisier(sample["noisy"], sample["level"], rng), "target": sample["noisy"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float) -> Batch:
        """Return the distance of the output to the noisy image."""
        return {"loss": distance(self.loss_name, net(batch["input"]), batch["target"], progress=progress)}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: "Rng") -> Tensor:
        """Return the corrected output for a doubly noisy image; the caller averages ``passes`` of these."""
        noisier = self._noisier(noisy, known(level, "noisier2noise"), rng)
        squared = self.alpha**2
        restored: Tensor = ((1 + squared) * net(noisier).float() - noisier) / squared
        return restored

    def _noisier(self, noisy: Tensor, level: Tensor, rng: "Rng") -> Tensor:
        return noisy + self.alpha * level * rng.stream("noisier").normal(*noisy.shape[1:])

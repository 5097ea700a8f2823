"""Recorrupted2Recorrupted: make two independent noisy images out of one (Pang et al., CVPR 2021)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.level import require_level
from denoise.methods.losses import LossName, distance
from denoise.rng import Rng

Family = Literal["auto", "gauss", "poisson", "none"]


@dataclass(frozen=True)
class Recorrupted2Recorrupted(Method):
    """Add noise to the input and subtract it, scaled, from the target, so that their errors are uncorrelated.

        L = mean (f(y^) - y~)^2,    y^ = y + alpha sigma z,    y~ = y - sigma z / alpha

    with the noisy image y and z standard normal, drawn anew every step for every pixel and channel (section 3, where
    alpha I is D). For Gaussian noise the errors of y^ and y~ are independent, and the expected loss is the supervised
    one plus the constant sigma^2 (1 + 1/alpha^2). For Poisson noise (sigma^2 = y / peak) only their correlation is 0.
    At test f(y^) is averaged over ``passes`` draws of z.

    alpha is the paper's. The alpha of deepinv is alpha^2 / (1 + alpha^2), so that 0.5 here is 0.2 there.
    The loss is a mean where the paper's code takes half the sum over an image. Results are not clipped.
    """

    alpha: Annotated[float, Field(gt=0)] = 0.5
    passes: Annotated[int, Field(ge=1, le=10_000)] = 50  # recorruptions of an image that are averaged to restore it
    loss_name: LossName = "l2"
    family: Family = "auto"  # of the noise; none: Gaussian of an estimated sigma
    needs: ClassVar[tuple[View, ...]] = ("noisy", "level")
    net: ClassVar[str] = "dncnn"
    families: ClassVar[tuple[str, ...] | None] = ("gauss", "poisson", "none")

    def test_time_passes(self) -> int:
        """Return how many recorruptions are averaged."""
        return self.passes

    def needs_level(self) -> bool:
        """Return True: an image is recorrupted at test as it was in training."""
        return True

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the pair of recorrupted images."""
        noisy = sample["noisy"]
        recorruption = self._noise(noisy, sample["level"], rng)
        return {"input": noisy + self.alpha * recorruption, "target": noisy - recorruption / self.alpha}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the distance of the output to the other recorrupted image."""
        return {"loss": distance(self.loss_name, net(batch["input"]), batch["target"], progress=progress)}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the net's output for the image with more noise; the caller averages ``passes`` of these."""
        restored: Tensor = net(noisy + self.alpha * self._noise(noisy, require_level(level, "r2r"), rng))
        return restored

    def _noise(self, noisy: Tensor, level: Tensor, rng: Rng) -> Tensor:
        """Return sigma z, (B, C, H, W)."""
        return self._sigma(noisy, level) * rng.stream("recorruption").normal(*noisy.shape[1:])

    def _sigma(self, noisy: Tensor, level: Tensor) -> Tensor:
        """Return the noise's standard deviation: the level, or for Poisson noise sqrt(y / peak) of every value.

        That variance is estimated from the noisy image without bias, except that it is at least the variance of one
        photon: a black pixel would otherwise be its own target.
        """
        if self.family != "poisson":
            return level
        return (noisy.maximum(1 / level) / level).sqrt()

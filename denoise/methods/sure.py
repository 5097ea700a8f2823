"""SURE: minimise Stein's unbiased estimate of the supervised loss (Soltanayev & Chun 2018; Metzler et al. 2018)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from denoise.methods.base import Batch, Method, View, Views

if TYPE_CHECKING:
    from denoise.rng import Rng


@dataclass(frozen=True)
class SURE(Method):
    """Compare the output with the noisy image itself, and charge for how much a value depends on its own pixel.

    For Gaussian noise, mean (f(y) - y)^2 - sigma^2 + 2 sigma^2 / N div f(y) has the expectation of the supervised
    mean (f(y) - clean)^2 (Stein 1981). The divergence is estimated with one random probe b, standard normal, as
    b . (f(y + epsilon b) - f(y)) / epsilon (Ramani et al. 2008).
    """

    epsilon: Annotated[float, Field(gt=0)] = 1e-3  # step of the difference: the brightest value / 1000 (Metzler et al.)
    needs: ClassVar[tuple[View, ...]] = ("noisy", "level")
    families: ClassVar[tuple[str, ...] | None] = ("gauss", "none")

    def make_batch(self, sample: Views, rng: "Rng") -> Batch:
        """Return the noisy image, its sigma and the probe."""
        noisy = sample["noisy"]
        return {"input": noisy, "level": sample["level"], "probe": rng.stream("probe").normal(*noisy.shape[1:])}

    def loss(self, net: nn.Module, batch: Batch, progress: float) -> Batch:
        """Return the estimated supervised loss, which may be negative; logs its two parts.

        The net is called twice, in float32 whatever the autocast type: a difference over epsilon is smaller than what
        bfloat16 resolves. Batch normalisation is no obstacle, the batch as a whole is then what f maps.
        """
        noisy, probe, variance = batch["input"], batch["probe"], batch["level"].square()
        with torch.autocast(noisy.device.type, enabled=False):
            restored = net(noisy)
            moved = net(noisy + self.epsilon * probe)
        fidelity = (restored - noisy).square().mean((1, 2, 3), keepdim=True) - variance
        divergence = (probe * (moved - restored)).mean((1, 2, 3), keepdim=True) / self.epsilon
        return {
            "loss": (fidelity + 2 * variance * divergence).mean(),
            "fidelity": fidelity.detach().mean(),
            "divergence": divergence.detach().mean(),
        }

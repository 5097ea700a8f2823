"""SURE: minimise Stein's unbiased estimate of the supervised loss (Soltanayev & Chun 2018; Metzler et al. 2018)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.rng import Rng


@dataclass(frozen=True)
class SURE(Method):
    """Compare the output with the noisy image itself, and penalise how much each value depends on its own pixel.

        L = mean (f(y) - y)^2 - sigma^2 + 2 sigma^2 / N  b . (f(y + epsilon b) - f(y)) / epsilon

    with the noisy image y of N values and a random probe b, standard normal, drawn once a step; b . (...) / epsilon
    estimates the divergence of f (Ramani et al. 2008). For Gaussian noise the expectation of L is that of the
    supervised loss mean (f(y) - x)^2 (Stein 1981).
    """

    epsilon: Annotated[float, Field(gt=0)] = 1e-3  # step of the difference: the brightest value / 1000 (Metzler et al.)
    needs: ClassVar[tuple[View, ...]] = ("noisy", "level")
    families: ClassVar[tuple[str, ...] | None] = ("gauss", "none")

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the noisy image, its sigma and the probe."""
        noisy = sample["noisy"]
        return {"input": noisy, "level": sample["level"], "probe": rng.stream("probe").normal(*noisy.shape[1:])}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
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

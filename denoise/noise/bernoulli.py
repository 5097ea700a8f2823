"""Multiplicative Bernoulli noise: lost pixels."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from denoise.noise.base import Noise, Observation
from denoise.rng import Rng


@dataclass(frozen=True)
class Bernoulli(Noise):
    """Loses pixels, all channels together, with a mask of them; ``bernoulli0.5`` loses each with probability 0.5.

        y = m x,    m = 0 with probability p

    The level is the probability; Lehtinen et al. 2018 (section 3.3) train with U(0, 0.95).
    """

    family: ClassVar[str] = "bernoulli"
    limits: ClassVar[tuple[float, float]] = (0, 0.99)
    example: ClassVar[str] = "bernoulli0.5 (share of lost pixels) or bernoulli0_0.95 (a range)"

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return mask * image, and the mask (B, 1, H, W)."""
        share = self.draw_level(rng)
        mask = (rng.stream("lost").uniform(1, *image.shape[2:]) >= share).to(image.dtype)
        return Observation(image * mask, share, mask)

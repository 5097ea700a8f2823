"""Random-valued impulse noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from denoise.noise.base import Noise, Observation
from denoise.rng import Rng


@dataclass(frozen=True)
class Impulse(Noise):
    """Replaces pixels by random colours; ``impulse0.5`` replaces each with probability 0.5, without a mask.

    A pixel changes as a whole, to a colour uniform in [0, 1]^C (Lehtinen et al. 2018, section 3.3). The level is the
    probability: U(0, 0.95) there, U(0, 1) in Laine et al. 2019.
    """

    family: ClassVar[str] = "impulse"
    limits: ClassVar[tuple[float, float]] = (0, 1)
    example: ClassVar[str] = "impulse0.5 (share of replaced pixels) or impulse0_1 (a range)"

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return the image with some of its pixels replaced."""
        share = self.draw_level(rng)
        replaced = rng.stream("replaced").uniform(1, *image.shape[2:]) < share
        colour = rng.stream("colour").uniform(*image.shape[1:]).to(image.dtype)
        return Observation(torch.where(replaced, colour, image), share)

"""Additive white Gaussian noise."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from denoise.noise.base import Noise, Observation
from denoise.rng import Rng


@dataclass(frozen=True)
class Gaussian(Noise):
    """Adds white Gaussian noise, y = x + sigma n with n standard normal; ``gauss25`` has sigma 25/255, the level."""

    family: ClassVar[str] = "gauss"
    unit: ClassVar[float] = 1 / 255
    limits: ClassVar[tuple[float, float]] = (0.01, 255)
    example: ClassVar[str] = "gauss25 (one sigma) or gauss5_50 (a range), in 1/255"

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return image + sigma n."""
        sigma = self.draw_level(rng)
        return Observation(image + sigma * rng.stream("noise").normal(*image.shape[1:]), sigma)

"""Additive white Gaussian noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from denoise.noise.base import Noise, Observed

if TYPE_CHECKING:
    from denoise.rng import Rng


@dataclass(frozen=True)
class Gaussian(Noise):
    """Adds sigma times a standard normal number to every value; ``gauss25`` has sigma 25/255. The level is sigma."""

    family: ClassVar[str] = "gauss"
    unit: ClassVar[float] = 1 / 255
    limits: ClassVar[tuple[float, float]] = (0.01, 255)
    example: ClassVar[str] = "gauss25 (one sigma) or gauss5_50 (a range), in 1/255"

    def corrupt(self, image: Tensor, rng: "Rng") -> Observed:
        """Return image + sigma n."""
        sigma = self.draw_level(rng)
        return Observed(image + sigma * rng.stream("noise").normal(*image.shape[1:]), sigma)

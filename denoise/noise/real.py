"""Real noise: images that are noisy already."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from denoise.noise.base import Noise, Observation
from denoise.rng import Rng


@dataclass(frozen=True)
class Real(Noise):
    """Adds nothing: the images have the noise of their camera. The name ``none`` takes no number.

    Its level is a property of each image (denoise.images.noise_level estimates it), so it is not known here.
    """

    low: float = 0
    high: float = 0
    family: ClassVar[str] = "none"
    limits: ClassVar[tuple[float, float]] = (0, 0)
    example: ClassVar[str] = "none (real noise, nothing is added)"

    @property
    def name(self) -> str:
        """The name that ``parse_noise`` understands: none."""
        return self.family

    @property
    def level(self) -> float | None:
        """None: it differs from image to image."""
        return None

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return the image as it is, and zeros for the level, which the caller estimates."""
        return Observation(image, image.new_zeros(len(image), 1, 1, 1))

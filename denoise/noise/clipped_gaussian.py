"""Additive white Gaussian noise, clipped to the range of an image."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from denoise.noise.base import Observation
from denoise.noise.gaussian import Gaussian
from denoise.rng import Rng


@dataclass(frozen=True)
class ClippedGaussian(Gaussian):
    """Adds white Gaussian noise and clips, y = min(max(x + sigma n, 0), 1); the level is the sigma before clipping.

    Its mean is not zero near black and white: ``clippedgauss25`` lifts black by 25 / sqrt(2 pi) = 10 of 255. Methods
    that assume zero mean and a known sigma take it for Gaussian noise and restore those places with a bias.
    """

    family: ClassVar[str] = "clippedgauss"
    example: ClassVar[str] = "clippedgauss25"

    @property
    def assumed_family(self) -> str:
        """The family of Gaussian noise."""
        return Gaussian.family

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return image + sigma n, clipped to [0, 1]."""
        observed = super().corrupt(image, rng)
        return replace(observed, noisy=observed.noisy.clamp(0, 1))

"""Additive Gaussian noise whose neighbouring values are correlated, as those of a developed photograph are."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from denoise.errors import UserError
from denoise.noise.base import Noise, Observation
from denoise.rng import Rng

WIDTHS = (0.3, 5.0)  # a narrower filter passes white noise, to 1.3 % of its neighbours
REACH = 4  # standard deviations, at which the filter ends


@dataclass(frozen=True)
class Correlated(Noise):
    """Adds white Gaussian noise that a Gaussian filter has blurred, with the variance it had before.

    ``corr25_0.8`` has sigma 25/255, the level, and a filter of standard deviation 0.8 pixels: values that are d pixels
    apart correlate by about exp(-d^2 / (4 * 0.8^2)), 0.67 of neighbours. Channels are independent. Methods that assume
    independent noise are not defined for it, unless their field ``family`` is set.
    """

    family: ClassVar[str] = "corr"
    unit: ClassVar[float] = 1 / 255
    limits: ClassVar[tuple[float, float]] = (0.01, 255)
    example: ClassVar[str] = "corr25_0.8"

    def __post_init__(self) -> None:
        lowest, highest = self.limits
        if not lowest <= self.low <= highest or not WIDTHS[0] <= self.high <= WIDTHS[1] or self.low == self.high:
            raise UserError(
                f"noise={self.name}: expected two different numbers, a sigma from {lowest:g} to {highest:g} and a "
                f"width from {WIDTHS[0]:g} to {WIDTHS[1]:g} pixels; write {self.example}."
            )

    @property
    def level(self) -> float | None:
        """Sigma, of every sample."""
        return self.low * self.unit

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return image + sigma n, n blurred."""
        channels, height, width = image.shape[1:]
        weights = self._weights()
        wider = len(weights) - 1
        noise = rng.stream("noise").normal(channels, height + wider, width + wider)
        rows, blurred = torch.zeros_like(noise[:, :, :height]), torch.zeros_like(image)
        for shift, weight in enumerate(weights):
            rows += weight * noise[:, :, shift : shift + height]
        for shift, weight in enumerate(weights):
            blurred += weight * rows[..., shift : shift + width]
        level = image.new_full((len(image), 1, 1, 1), self.low * self.unit)
        return Observation(image + level * blurred, level)

    def _weights(self) -> list[float]:
        """Return the filter along one axis; its squares sum to 1, so that the variance stays."""
        reach = math.ceil(REACH * self.high)
        weights = [math.exp(-(shift**2) / (2 * self.high**2)) for shift in range(-reach, reach + 1)]
        norm = math.sqrt(sum(weight**2 for weight in weights))
        return [weight / norm for weight in weights]

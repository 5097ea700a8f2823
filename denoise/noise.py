"""Noise models: how a clean picture becomes a noisy one. Synthetic noise is never clipped."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from denoise.errors import UserError

if TYPE_CHECKING:
    from denoise.rng import Rng


class Noise(Protocol):
    """A way to corrupt pictures."""

    @property
    def name(self) -> str:
        """The name that ``parse_noise`` understands."""
        ...

    def corrupt(self, clean: Tensor, rng: "Rng") -> tuple[Tensor, Tensor]:
        """Return (noisy, sigma) for a clean batch (B, C, H, W) in [0, 1]; sigma has shape (B, 1, 1, 1).

        sigma must never be computed from the clean picture: a method may be handed it.
        """
        ...


@dataclass(frozen=True)
class Gaussian:
    """Additive white Gaussian noise with sigma uniform in [low, high], drawn once a sample; in 1/255."""

    low: float
    high: float

    @property
    def name(self) -> str:
        """``gauss25`` for one sigma, ``gauss5_50`` for a range."""
        return f"gauss{self.low:g}" if self.low == self.high else f"gauss{self.low:g}_{self.high:g}"

    def corrupt(self, clean: Tensor, rng: "Rng") -> tuple[Tensor, Tensor]:
        """Return clean + sigma n, n standard normal, and sigma."""
        share = rng.stream("sigma").uniform(1, 1, 1)
        sigma = (self.low + (self.high - self.low) * share) / 255
        return clean + sigma * rng.stream("noise").normal(*clean.shape[1:]), sigma


_NUMBER = r"(\d+(?:\.\d+)?)"
_GAUSSIAN = re.compile(rf"gauss{_NUMBER}(?:_{_NUMBER})?")


def parse_noise(name: str) -> Noise:
    """Return the noise model of a name such as ``gauss25`` or ``gauss5_50``."""
    match = _GAUSSIAN.fullmatch(name)
    if match is None:
        raise UserError(
            f"noise={name} is not a known noise; write gauss25 (one sigma) or gauss5_50 (a range), in 1/255."
        )
    low = float(match[1])
    high = float(match[2] or match[1])
    if not 0 < low <= high:
        raise UserError(f"noise={name}: sigma must be above 0 and the range ascending, e.g. gauss5_50.")
    return Gaussian(low, high)

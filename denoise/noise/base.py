"""The interface of a noise model, which turns a clean image into a noisy one; it clips only if its name says so."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from denoise.errors import UserError
from denoise.rng import Rng


@dataclass(frozen=True)
class Observation:
    """A noisy observation of a batch."""

    noisy: Tensor  # (B, C, H, W), clipped only where the name of the noise says so
    level: Tensor  # (B, 1, 1, 1): the strength drawn for each sample, in the noise's own unit
    mask: Tensor | None = None  # (B, 1, H, W), 0 where a pixel is known to be lost; None: no pixel is


@dataclass(frozen=True)
class Noise:
    """A way to corrupt images, with a strength uniform in [low, high] that is drawn once a sample.

    A subclass defines what the two numbers of its name mean: ``gauss5_50`` is family gauss with low 5 and high 50.
    """

    low: float
    high: float

    family: ClassVar[str]
    unit: ClassVar[float] = 1  # of the name's numbers, in the unit of ``level``; 1/255 for Gaussian noise
    limits: ClassVar[tuple[float, float]]  # range of the name's numbers
    example: ClassVar[str]  # example names, shown in error messages
    on_host: ClassVar[bool] = False  # True: drawn on the host anew for each batch, which no CUDA graph can repeat

    def __post_init__(self) -> None:
        minimum, maximum = self.limits
        if not minimum <= self.low <= self.high <= maximum:
            raise UserError(
                f"noise={self.name}: expected numbers from {minimum:g} to {maximum:g}, the smaller one first; "
                f"write {self.example}."
            )

    @property
    def name(self) -> str:
        """The name that ``parse_noise`` understands: ``gauss25`` for one level, ``gauss5_50`` for a range."""
        numbers = [f"{number:.6f}".rstrip("0").rstrip(".") for number in dict.fromkeys((self.low, self.high))]
        return self.family + "_".join(numbers)

    @property
    def level(self) -> float | None:
        """The level of every sample, None where it varies or is not known."""
        return self.low * self.unit if self.low == self.high else None

    @property
    def scale(self) -> int:
        """The side of an image divided by the side of its observation."""
        return 1

    @property
    def assumed_family(self) -> str:
        """The family that a method treats this noise as."""
        return self.family

    def reference(self, image: Tensor) -> Tensor:
        """Return the clean batch that observations of ``image`` (B, C, H, W) are compared with."""
        return image

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return a noisy observation of a batch (B, C, H, W) in [0, 1].

        The level must never be computed from the image, because methods may see it.
        """
        raise NotImplementedError

    def draw_level(self, rng: Rng) -> Tensor:
        """Return the level of each sample, (B, 1, 1, 1)."""
        fraction = rng.stream("level").uniform(1, 1, 1)
        return (self.low + (self.high - self.low) * fraction) * self.unit

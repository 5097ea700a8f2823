"""What a noise model is: how a clean image becomes a noisy one. Synthetic noise is never clipped."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from denoise.errors import UserError

if TYPE_CHECKING:
    from denoise.rng import Rng


@dataclass(frozen=True)
class Observed:
    """What a camera saw of a batch."""

    noisy: Tensor  # (B, C, H, W), never clipped
    level: Tensor  # (B, 1, 1, 1): the strength that was drawn for each sample, in the noise's own unit
    mask: Tensor | None = None  # (B, 1, H, W), 0 where a pixel was lost and is known to be; None: none was lost


@dataclass(frozen=True)
class Noise:
    """A way to corrupt images, with a strength uniform in [low, high] that is drawn once a sample.

    A subclass says what the two numbers of its name mean: ``gauss5_50`` is family gauss with low 5 and high 50.
    """

    low: float
    high: float

    family: ClassVar[str]
    unit: ClassVar[float] = 1  # one of the name's numbers in the unit of ``level``; 1/255 for Gaussian noise
    limits: ClassVar[tuple[float, float]]  # what the name's numbers may be
    example: ClassVar[str]  # names, to show where one was not understood

    def __post_init__(self) -> None:
        least, most = self.limits
        if not least <= self.low <= self.high <= most:
            raise UserError(
                f"noise={self.name}: expected numbers from {least:g} to {most:g}, the smaller one first; "
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
        """How many times larger the images must be, along each side, than what is observed of them."""
        return 1

    def reference(self, image: Tensor) -> Tensor:
        """Return the clean batch that observations of ``image`` (B, C, H, W) are compared with."""
        return image

    def corrupt(self, image: Tensor, rng: "Rng") -> Observed:
        """Return a noisy observation of a batch (B, C, H, W) in [0, 1].

        The level must never be computed from the image: a method may be handed it.
        """
        raise NotImplementedError

    def draw_level(self, rng: "Rng") -> Tensor:
        """Return the level of each sample, (B, 1, 1, 1)."""
        share = rng.stream("level").uniform(1, 1, 1)
        return (self.low + (self.high - self.low) * share) * self.unit

"""Subsampling noise: one pixel represents a block, as a renderer's single sample does."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from denoise.errors import UserError
from denoise.noise.base import Noise, Observation
from denoise.rng import Rng


@dataclass(frozen=True)
class Subsample(Noise):
    """Takes one random pixel of every k x k block; ``subsample8`` makes 32x32 of 256x256. The clean one is the mean.

    This is how the EE-559 pairs were made. The pixel is the same for all channels. Sides that are no multiples of k
    are cut at the bottom and right. The noise depends on the image alone: its level is 0.
    """

    family: ClassVar[str] = "subsample"
    limits: ClassVar[tuple[float, float]] = (2, 64)
    example: ClassVar[str] = "subsample8 (side of the blocks, one whole number)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low != self.high or self.low % 1:
            raise UserError(f"noise={self.name}: expected one whole number, the side of the blocks; write subsample8.")

    @property
    def level(self) -> float | None:
        """Zero: there is no strength."""
        return 0.0

    @property
    def scale(self) -> int:
        """The side of a block."""
        return int(self.low)

    def reference(self, image: Tensor) -> Tensor:
        """Return the means of the blocks, (B, C, H // k, W // k).

        Raises:
            UserError: a side of the image is shorter than a block.
        """
        return self._blocks(image).mean(-1)

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return one pixel of each block, (B, C, H // k, W // k).

        Raises:
            UserError: a side of the image is shorter than a block.
        """
        blocks = self._blocks(image)
        choice = rng.stream("chosen").integers(self.scale**2, 1, *blocks.shape[2:4], 1)
        noisy = blocks.gather(-1, choice.expand(*blocks.shape[:4], 1)).squeeze(-1)
        return Observation(noisy, image.new_zeros(len(image), 1, 1, 1))

    def _blocks(self, image: Tensor) -> Tensor:
        """Return the pixels of each block, (B, C, H // k, W // k, k^2)."""
        k = self.scale
        batch, channels, height, width = image.shape
        rows, columns = height // k, width // k
        if not rows * columns:
            raise UserError(
                f"noise={self.name} needs images of {k}x{k} pixels or more, got {width}x{height}; "
                "take larger images or smaller blocks."
            )
        blocks = image[..., : rows * k, : columns * k].reshape(batch, channels, rows, k, columns, k)
        return blocks.transpose(3, 4).reshape(batch, channels, rows, columns, k * k)

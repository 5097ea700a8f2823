"""Where the tiles of an image lie, and the weights by which overlapping tiles add up to an image without seams.

Tiles start at multiples of what the net's pooling needs, so that its grid lies where it would lie in a pass over the
whole image. Where two tiles overlap, the outer quarter of each is discarded (the tile's border shows there) and the
middle half is a raised-cosine cross-fade.
"""

from dataclasses import dataclass
from math import ceil, isqrt

import torch
from torch import Tensor

from denoise.errors import UserError

OVERLAP = 64  # pixels

Sides = tuple[int, int]  # height and width of the tiles
TileWindow = tuple[int, Tensor]  # start of a tile along one side, and the weights of its pixels along that side


@dataclass(frozen=True)
class Tiles:
    """How images are divided into overlapping tiles.

    Without a side, tiles have at most ``pixels`` and are those of the least arithmetic. With a side, they are as small
    as the fewest tiles of at most that side can be, or, where ``exact``, of that side wherever the image is as large:
    then a net sees as much of the image as the side says, and neighbours may overlap by more.

    Attributes:
        multiple: of the net; starts and sides of tiles are multiples of it.
        pixels: of a tile, at most, where no side is given.
        side: in pixels, rounded up to a multiple; None: as ``pixels`` allows.
        overlap: of neighbours in pixels, at least; None: 64, at most half a side.
        exact: whether tiles have that side and no smaller one.

    Raises:
        UserError: a side and an overlap that do not fit together.
    """

    multiple: int
    pixels: int
    side: int | None = None
    overlap: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        room = self.largest - self.multiple
        if self.least_overlap < 0 or self._shared > room:
            raise UserError(
                f"tile {self.largest} and overlap {self.least_overlap} do not fit together: expected an overlap of 0 "
                f"to {max(room, 0)}; give a larger tile or a smaller overlap."
            )

    @property
    def largest(self) -> int:
        """The side of the largest tile, in pixels; of a square one where no side is given."""
        if self.side is None:
            return isqrt(self.pixels) // self.multiple * self.multiple
        return _round_up(self.side, self.multiple)

    @property
    def least_overlap(self) -> int:
        """The overlap of neighbours in pixels, at least."""
        if self.overlap is not None:
            return self.overlap
        return OVERLAP if self.side is None else min(OVERLAP, self.side // 2)

    def sides(self, height: int, width: int) -> Sides:
        """Return the sides of the tiles of an image."""
        if self.side is not None:
            return self._side(height, self.largest), self._side(width, self.largest)
        choices = []
        for limit in range(self._shared + self.multiple, max(self._padded(height), self.largest) + 1, self.multiple):
            tall = self._side(height, limit)
            widest = self.pixels // tall // self.multiple * self.multiple
            if widest - self._shared >= self.multiple:
                choices.append((tall, self._side(width, widest)))

        def work(sides: Sides) -> Sides:
            count = self._count((height, width), sides)
            return count * sides[0] * sides[1], count

        return min(set(choices), key=lambda sides: (*work(sides), sides))

    def count(self, height: int, width: int) -> int:
        """Return the number of tiles that an image is divided into."""
        return self._count((height, width), self.sides(height, width))

    def together(self, height: int, width: int) -> int:
        """Return how many tiles are restored in one pass: of ``exact`` ones as many as have ``pixels``, else one."""
        tall, wide = self.sides(height, width)
        return max(1, self.pixels // (tall * wide)) if self.exact else 1

    def windows(self, height: int, width: int) -> tuple[list[TileWindow], list[TileWindow]]:
        """Return the tiles along both sides of the padded image; at each pixel the weights along a side sum to 1."""
        tall, wide = self.sides(height, width)
        return self._windows(height, tall), self._windows(width, wide)

    @property
    def _shared(self) -> int:
        return _round_up(self.least_overlap, self.multiple)

    def _padded(self, size: int) -> int:
        return _round_up(size, self.multiple)

    def _count(self, size: Sides, sides: Sides) -> int:
        return len(self._starts(size[0], sides[0])) * len(self._starts(size[1], sides[1]))

    def _side(self, size: int, largest: int) -> int:
        """Return the side of the fewest tiles that cover ``size``: the smallest one that does, or the largest."""
        padded = self._padded(size)
        if padded <= largest or self.exact:
            return min(padded, largest)
        count = ceil((padded - self._shared) / (largest - self._shared))
        return _round_up(ceil((padded - self._shared) / count) + self._shared, self.multiple)

    def _starts(self, size: int, side: int) -> list[int]:
        """Return the starts of the tiles along one side: multiples of ``multiple``, evenly spaced up to its end."""
        last = self._padded(size) - side
        if last <= 0:
            return [0]
        steps = ceil(last / (side - self._shared))
        return [last * step // steps // self.multiple * self.multiple for step in range(steps + 1)]

    def _windows(self, size: int, side: int) -> list[TileWindow]:
        starts = self._starts(size, side)
        weights = torch.ones(len(starts), side)
        for index in range(len(starts) - 1):
            fade = _fade(starts[index] + side - starts[index + 1])
            weights[index, side - len(fade) :] *= 1 - fade
            weights[index + 1, : len(fade)] *= fade
        total = torch.zeros(self._padded(size))  # 1 except where three tiles meet
        for start, weight in zip(starts, weights, strict=True):
            total[start : start + side] += weight
        return [(start, weight / total[start : start + side]) for start, weight in zip(starts, weights, strict=True)]


def _round_up(size: int, multiple: int) -> int:
    return ceil(size / multiple) * multiple


def _fade(overlap: int) -> Tensor:
    """Return weights that rise from 0 to 1: a raised cosine in the middle half, constant in the outer quarters."""
    margin = overlap // 4
    ramp = (torch.arange(overlap) - margin + 0.5) / max(overlap - 2 * margin, 1)
    return 0.5 - 0.5 * torch.cos(torch.pi * ramp.clamp(0, 1))

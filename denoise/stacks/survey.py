"""What the values of planes are like: the range that they fill, and planes that need a word."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.errors import UserError
from denoise.stacks.value_range import ValueRange

PERCENTILES = (0.1, 99.9)  # of a plane's values: hot and dead pixels lie outside
MOST_SORTED = 1 << 20  # values of a plane that percentiles are taken of, evenly spread over it
FAR = 1.0  # spans of a range: values that lie further outside are told
NARROW = 16  # part of a range: values that fill less are told


@dataclass(frozen=True)
class Survey:
    """Counts and the range of some planes; the sum of two surveys is that of the planes of both.

    Attributes:
        planes: how many there are.
        low, high: the smallest low and the largest high percentile of a plane; a plane that is no number has none.
        constant: planes of one value.
        negative: planes with values below zero.
        no_number: planes with values that are NaN or infinite.
    """

    planes: int = 0
    low: float = math.inf
    high: float = -math.inf
    constant: int = 0
    negative: int = 0
    no_number: int = 0

    def __add__(self, other: "Survey") -> "Survey":
        return Survey(
            self.planes + other.planes,
            min(self.low, other.low),
            max(self.high, other.high),
            self.constant + other.constant,
            self.negative + other.negative,
            self.no_number + other.no_number,
        )

    def measured_range(self, name: str) -> ValueRange:
        """Return the range that the values fill, which is the same however the planes were divided.

        Raises:
            UserError: it is zero.
        """
        if not self.low < self.high:
            raise UserError(
                f"{name} holds no values that differ, so their range is zero; leave it out, or give LOW,HIGH (--range)."
            )
        return ValueRange(self.low, self.high)

    def remarks(self) -> Iterator[str]:
        """Yield a phrase for each kind of planes that need a word."""
        for count, text in (
            (self.constant, "constant"),
            (self.negative, "with negative values"),
            (self.no_number, "with values that are no number"),
        ):
            if count:
                yield f"{count} of {self.planes} planes {text}"


def survey(plane: NDArray[Any]) -> Survey:
    """Return the survey of one plane (H, W, C)."""
    values = plane.ravel()
    finite = np.isfinite(values)
    no_number = not finite.all()
    values = values[finite] if no_number else values
    if not values.size:
        return Survey(1, no_number=1)
    least, largest = values.min(), values.max()
    sample = values[:: -(-values.size // MOST_SORTED)].astype(np.float64)
    low, high = np.percentile(sample, PERCENTILES)
    if low == high:  # as of a few photons in the dark
        low, high = least, largest
    return Survey(1, float(low), float(high), int(least == largest and not no_number), int(least < 0), int(no_number))


def is_far(measured: ValueRange, assumed: ValueRange) -> bool:
    """Return whether values lie so far outside of a range, or fill so little of it, that its model does not suit."""
    beyond = max(assumed.low - measured.low, measured.high - assumed.high)
    return beyond > FAR * assumed.span or measured.span * NARROW < assumed.span

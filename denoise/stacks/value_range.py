"""ValueRange: which values of a file become 0 and 1 for a network, and the way back.

Restoring adds what the network changed, times the range, to the stored value. So a value that the network leaves as it
is comes back with the same bits, whatever its type and the range are. The direct way back, ``from_unit``, is exact for
integers of 16 bits and less; floats lose what float32 cannot hold of (value - low) / (high - low).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from denoise.errors import UserError

TYPES = ("uint8", "int8", "uint16", "int16", "float16", "float32")  # of values that are read


@dataclass(frozen=True)
class ValueRange:
    """The values that become 0 and 1; others become numbers below 0 or above 1, nothing is clipped.

    Raises:
        UserError: a range of zero, or one that is no number.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"the range {self} is none: expected two numbers, the smaller one first; give LOW,HIGH.")

    def __str__(self) -> str:
        return f"{self.low:g},{self.high:g}"

    @property
    def span(self) -> float:
        """How far apart the two values are."""
        return self.high - self.low

    def to_unit(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return values as float32 in units of the range."""
        return ((pixels.astype(np.float64) - self.low) / self.span).astype(np.float32)

    def from_unit(self, unit: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        """Return units of the range as values of ``dtype``: rounded for integers, clipped to the type."""
        return _as_type(self.low + unit.astype(np.float64) * self.span, dtype)

    def with_change(self, pixels: NDArray[Any], change: NDArray[Any]) -> NDArray[Any]:
        """Return values changed by units of the range, of the same type: rounded and clipped as by ``from_unit``."""
        return _as_type(pixels.astype(np.float64) + change.astype(np.float64) * self.span, pixels.dtype)


def type_range(dtype: DTypeLike) -> ValueRange:
    """Return the range of an integer type.

    Raises:
        UserError: floating-point values, which have none.
    """
    if np.dtype(dtype).kind == "f":
        raise UserError("floating-point values have no range by their type; give LOW,HIGH, or leave it to be measured.")
    limits = np.iinfo(np.dtype(dtype))
    return ValueRange(float(limits.min), float(limits.max))


def parse_range(text: str) -> ValueRange:
    """Return the range in ``LOW,HIGH``; UserError if there is none."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"the range {text!r} is none: expected auto, type, percentiles, or LOW,HIGH, for example 100,4095."
        ) from None
    return ValueRange(low, high)


def _as_type(values: NDArray[np.float64], dtype: DTypeLike) -> NDArray[Any]:
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        return np.clip(values, -limit, limit).astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)

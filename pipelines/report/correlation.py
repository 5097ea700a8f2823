"""An autocorrelation as a map of coloured squares, which the template correlation.svg.jinja draws."""

from collections.abc import Sequence
from dataclasses import dataclass

CELL = 18  # side of a square, in the units of the viewBox
FULL = 0.5  # correlation of the full colour
POSITIVE, NEGATIVE = (31, 90, 150), (180, 60, 26)


@dataclass(frozen=True)
class Square:
    """One lag of a map."""

    x: int
    y: int
    colour: str
    about: str


@dataclass(frozen=True)
class CorrelationMap:
    """A map, of ``side`` units in both directions."""

    title: str
    side: int
    squares: tuple[Square, ...]


def draw_map(title: str, correlation: Sequence[Sequence[float]]) -> CorrelationMap:
    """Return the map of correlations by lag, (2 R + 1) x (2 R + 1), lag 0 in the middle.

    White is 0, blue is positive and red negative, in full colour from 0.5.
    """
    reach = len(correlation) // 2
    squares = [
        Square(CELL * column, CELL * row, _colour(value), f"{row - reach} down, {column - reach} across: {value:.2f}")
        for row, values in enumerate(correlation)
        for column, value in enumerate(values)
    ]
    return CorrelationMap(title, CELL * len(correlation), tuple(squares))


def _colour(value: float) -> str:
    share = min(1.0, abs(value) / FULL)
    return "#" + "".join(f"{round(255 + share * (part - 255)):02x}" for part in (POSITIVE if value > 0 else NEGATIVE))

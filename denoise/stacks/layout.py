"""Which axes a file's values have, which of them make a plane, and what its planes are called.

A plane is what a denoiser restores at once: the axes Y and X, with S (the samples of a colour) where there are three,
or C where channels are taken as colour. All other axes (T, Z, C, ...) are counted through, the last one fastest.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.errors import UserError

COLOURS = 3
CHANNELS = re.compile(r"each|joint|\d{1,4}")
Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Layout:
    """The axes of an array, and those of them that make a plane.

    Attributes:
        shape: of the array.
        axes: a letter for each side of the shape, Y and X among them.
        inner: the letters that make a plane.
        channel: the only place along C that is restored; None: all.
    """

    shape: tuple[int, ...]
    axes: str
    inner: str = "YX"
    channel: int | None = None

    def __len__(self) -> int:
        """Return the number of planes."""
        return math.prod(self._outer_shape)

    @property
    def plane_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a plane."""
        sides = dict(zip(self.axes, self.shape, strict=True))
        colour = next((sides[axis] for axis in self.inner if axis not in "YX"), 1)
        return sides["Y"], sides["X"], colour

    @property
    def plane_values(self) -> int:
        """How many values a plane has."""
        return math.prod(self.plane_shape)

    def chosen(self, number: int) -> bool:
        """Return whether a plane is to be restored, and not one of another channel than ``channel``."""
        return self.channel is None or self._position(number)[self._outer_axes.index("C")] == self.channel

    def name(self, number: int) -> str:
        """Return the name of a plane, such as ``t003_c1``; names sort as the numbers. Axes of one place are left out.

        An array of a single plane has no name for it: the empty string.
        """
        parts = zip(self._outer_axes, self._position(number), self._outer_shape, strict=True)
        return "_".join(f"{axis.lower()}{place:0{len(str(size - 1))}d}" for axis, place, size in parts if size > 1)

    def index(self, number: int) -> Index:
        """Return the index of a plane in the array."""
        places = iter(self._position(number))
        return tuple(slice(None) if axis in self.inner else next(places) for axis in self.axes)

    def to_plane(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return what lies at the ``index`` of a plane as (H, W, C)."""
        order = [self._inner_axes.index(axis) for axis in self._plane_axes]
        return part.transpose(order).reshape(self.plane_shape)

    def from_plane(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Return a plane (H, W, C) as it lies in the array: the reverse of ``to_plane``."""
        height, width, channels = plane.shape
        sides = (height, width, channels)[: len(self._plane_axes)]
        return plane.reshape(sides).transpose([self._plane_axes.index(axis) for axis in self._inner_axes])

    def _position(self, number: int) -> tuple[int, ...]:
        """Return the places of a plane along the axes that are no part of planes."""
        return tuple(int(place) for place in np.unravel_index(number, self._outer_shape)) if self._outer_shape else ()

    @property
    def _inner_axes(self) -> str:
        return "".join(axis for axis in self.axes if axis in self.inner)

    @property
    def _plane_axes(self) -> str:
        """The axes of a plane in the order (H, W, C)."""
        return "YX" + "".join(axis for axis in self.inner if axis not in "YX")

    @cached_property
    def _outer_axes(self) -> str:
        return "".join(axis for axis in self.axes if axis not in self.inner)

    @cached_property
    def _outer_shape(self) -> tuple[int, ...]:
        return tuple(size for axis, size in zip(self.axes, self.shape, strict=True) if axis not in self.inner)


def make_layout(name: str, shape: Sequence[int], axes: str, channels: str = "each", colour: bool = True) -> Layout:
    """Return the layout of a file's array.

    Args:
        name: of the file, for messages.
        shape: of its array.
        axes: a letter for each side.
        channels: what C is: ``each`` channel an image of its own, ``joint`` as colour, or the number of the only one.
        colour: whether three samples S are red, green and blue.

    Raises:
        UserError: the axes do not fit the shape, or channels are asked for that the file does not have.
    """
    axes = axes.upper()
    if len(axes) != len(shape) or not axes.isalpha() or any(axes.count(axis) != 1 for axis in "YX"):
        raise UserError(
            f"{name} has the sides {_sides(shape)}, which the axes {axes} do not fit: expected {len(shape)} letters, "
            "Y and X once each; give them with --axes, for example TZCYX."
        )
    if 0 in shape:
        raise UserError(f"{name} has the sides {_sides(shape)}, so it holds no values; give a file that does.")
    if any(axes.count(axis) > 1 for axis in "CS"):
        raise UserError(f"{name} has the axes {axes}, of which C and S can be there once; name others with --axes.")
    check_channels(channels)
    sides = dict(zip(axes, shape, strict=True))
    inner = "YXS" if colour and sides.get("S") == COLOURS else "YX"
    if channels == "each":
        return Layout(tuple(shape), axes, inner)
    if "C" not in sides:
        raise UserError(f"{name} has the axes {axes} and no C; leave out --channels, or name the axis with --axes.")
    if channels == "joint":
        if sides["C"] not in (1, COLOURS) or inner != "YX":
            raise UserError(
                f"{name} has {sides['C']} channels{' of colours' if inner != 'YX' else ''}, networks take 1, or 3 as "
                "colour; use --channels each, or the number of one."
            )
        return Layout(tuple(shape), axes, "YXC")
    if int(channels) >= sides["C"]:
        raise UserError(f"{name} has {sides['C']} channels and none of the number {channels}; they start at 0.")
    return Layout(tuple(shape), axes, inner, int(channels))


def check_channels(channels: str) -> None:
    """Raise UserError for what says nothing of channels."""
    if not CHANNELS.fullmatch(channels):
        raise UserError(f"the channels {channels!r} are not known; use each, joint, or the number of one.")


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))

"""The planes of stacks as samples: stored as they are, each a .npy file, and looked at on the way."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.errors import UserError
from denoise.stacks.opening import open_stack
from denoise.stacks.stack import Stack


@dataclass(frozen=True)
class Plane:
    """A plane of a stack: its number, its size in bytes, and how the stack is read."""

    number: int
    bytes: int
    axes: str | None = None
    channels: str = "each"


class PlaneReader:
    """Reads planes; the stack of the last one stays open until the block ends."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._key: tuple[Path, str | None, str] | None = None
        self._stack: Stack | None = None

    def __enter__(self) -> "PlaneReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def read(self, path: Path, plane: Plane) -> NDArray[Any]:
        """Return the values of a plane (H, W, C).

        Raises:
            UserError: the file or the plane cannot be read, or it holds values that are no number.
        """
        key = (path, plane.axes, plane.channels)
        if self._stack is None or self._key != key:
            self._open.close()
            self._stack, self._key = self._open.enter_context(open_stack(*key)), key
        values = self._stack.plane(plane.number)
        if not np.isfinite(values).all():
            raise UserError(
                f"{path} holds values that are no number in {self._stack.name(plane.number)}; leave such planes out "
                "with --skip-broken."
            )
        return values


def eight_bits(plane: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a plane as 8 bits between its least and its largest value: what it looks like."""
    values = plane.astype(np.float64)
    least, span = values.min(), np.ptp(values)
    scaled: NDArray[np.uint8] = np.rint((values - least) * (255 / (span or 1))).astype(np.uint8)
    return scaled

"""Stack: the planes of a file, read one at a time, and the file of the same kind that restored planes go into."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from denoise.errors import UserError, first_line
from denoise.stacks.layout import Index, Layout


class Array(Protocol):
    """Values by index: a memory map, or the pages of a file."""

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Return the values at an index of one entry for each axis."""
        ...


class Sink(Protocol):
    """Takes values by index, of planes in the order of ``Stack.order``."""

    def __setitem__(self, index: Index, values: NDArray[Any]) -> None:
        """Write the values at an index."""
        ...


@dataclass(frozen=True)
class Stack:
    """The planes of a file.

    Attributes:
        path: the file.
        layout: its axes, and which of them make a plane.
        dtype: of its values, in the byte order of this machine.
        array: its values.
        create: opens a new file of the same shape, axes, type and metadata, which is complete when its block ends.
        order: the numbers of all planes in the order in which they lie in the file.
        remarks: sentences about what a restored file does not have.
    """

    path: Path
    layout: Layout
    dtype: "np.dtype[Any]"
    array: Array
    create: Callable[[Path], AbstractContextManager[Sink]]
    order: Sequence[int]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of planes."""
        return len(self.layout)

    def name(self, number: int) -> str:
        """Return FILE/PLANE, the name of a plane; FILE where there is only one."""
        plane = self.layout.name(number)
        return f"{self.path.name}/{plane}" if plane else self.path.name

    def plane(self, number: int) -> NDArray[Any]:
        """Return a plane (H, W, C) in the file's type.

        Raises:
            UserError: it cannot be read; the message names the file and the plane.
        """
        try:
            part = self.layout.to_plane(np.asarray(self.array[self.layout.index(number)]))
        except UserError:
            raise
        except Exception as error:  # broken bytes make decoders raise nearly anything
            raise UserError(f"{self.path} cannot be read at {self.name(number)}: {first_line(error)}.") from error
        return np.ascontiguousarray(part, dtype=self.dtype)

    def planes(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield number and values (H, W, C) of the planes that are to be restored, in the order of the file."""
        for number in filter(self.layout.chosen, self.order):
            yield number, self.plane(number)

"""Values of a file by index, mapped into memory for the moment of an access.

What a mapping has touched counts as memory of the process for as long as it is there, so one for each plane is what
keeps that at a plane's size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from denoise.stacks.layout import Index


@dataclass(frozen=True)
class MappedValues:
    """The values of an array that lies in a file as it lies in memory."""

    path: Path
    dtype: "np.dtype[Any]"
    offset: int  # bytes
    shape: tuple[int, ...]
    order: Literal["C", "F"] = "C"

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Return a copy of the values at an index."""
        return np.array(self._mapped("r")[index])

    def __setitem__(self, index: Index, values: NDArray[Any]) -> None:
        """Write the values at an index."""
        self._mapped("r+")[index] = values

    def _mapped(self, mode: Literal["r", "r+"]) -> NDArray[Any]:
        return np.memmap(self.path, self.dtype, mode, self.offset, self.shape, self.order)

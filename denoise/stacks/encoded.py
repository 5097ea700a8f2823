"""A plane as bytes: a .npy file (NumPy's format 1.0), which holds every type without loss."""

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from denoise.stacks.value_range import TYPES

MAGIC = npy_format.MAGIC_PREFIX


def encode_plane(plane: NDArray[Any]) -> bytes:
    """Return a plane (H, W, C) as a .npy file, the same bytes on every machine."""
    file = io.BytesIO()
    little = np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("<"))
    npy_format.write_array(file, little, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_plane(data: bytes) -> NDArray[Any]:
    """Return the plane of a .npy file, read-only and without a copy; its header sets no memory aside.

    Raises:
        ValueError: it holds anything else.
    """
    file = io.BytesIO(data)
    if npy_format.read_magic(file) != (1, 0):
        raise ValueError("a plane is a .npy file of format 1.0")
    shape, fortran, dtype = npy_format.read_array_header_1_0(file)
    if fortran or len(shape) != 3 or dtype.name not in TYPES:
        raise ValueError(f"a plane has three sides and values of {', '.join(TYPES)}")
    return np.frombuffer(data, dtype, math.prod(shape), file.tell()).reshape(shape)

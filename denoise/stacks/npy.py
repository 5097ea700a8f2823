"""Stacks in NumPy's files: .npy, mapped into memory, and .npz with one array, unpacked into a temporary file first."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from denoise.errors import UserError
from denoise.files import atomic_file
from denoise.stacks.kinds import check_type
from denoise.stacks.layout import COLOURS, make_layout
from denoise.stacks.mapped import MappedValues
from denoise.stacks.stack import Sink, Stack

AXES = {2: "YX", 3: "ZYX", 4: "TZYX", 5: "TZCYX"}  # by the number of sides, where nobody says


@contextmanager
def open_npy(path: Path, axes: str | None, channels: str) -> Iterator[Stack]:
    """Open a .npy file."""
    yield _stack(path, np.load(path, mmap_mode="r", allow_pickle=False), axes, channels, None)


@contextmanager
def open_npz(path: Path, axes: str | None, channels: str) -> Iterator[Stack]:
    """Open a .npz file of one array."""
    with zipfile.ZipFile(path) as archive, tempfile.NamedTemporaryFile(suffix=".npy") as unpacked:
        members = archive.namelist()
        if len(members) != 1 or not members[0].endswith(".npy"):
            raise UserError(f"{path} holds {len(members)} arrays, expected one; save each as a .npy file.")
        with archive.open(members[0]) as member:
            shutil.copyfileobj(member, unpacked)
        unpacked.flush()
        array = np.load(unpacked.name, mmap_mode="r", allow_pickle=False)
        yield _stack(path, array, axes, channels, archive.getinfo(members[0]))


def guessed_axes(shape: tuple[int, ...]) -> str:
    """Return the axes of an array that names none: a last side of 3 is colour."""
    colour = len(shape) > 2 and shape[-1] == COLOURS
    return AXES.get(len(shape) - colour, "Q" * (len(shape) - colour - 2) + "YX") + "S" * colour


def _stack(path: Path, array: Any, axes: str | None, channels: str, member: zipfile.ZipInfo | None) -> Stack:
    """Return the stack of an array that is mapped into memory."""
    if array.ndim < 2:
        raise UserError(
            f"{path} holds an array of {array.ndim} sides, expected at least two; give an image or a stack."
        )
    check_type(path, array.dtype)
    layout = make_layout(str(path), array.shape, axes or guessed_axes(array.shape), channels)
    fortran = bool(array.flags.f_contiguous and not array.flags.c_contiguous)
    values = MappedValues(Path(array.filename), array.dtype, array.offset, array.shape, "F" if fortran else "C")

    @contextmanager
    def create(target: Path) -> Iterator[Sink]:
        with atomic_file(target) as work:
            if member is None:
                yield _new_file(work, values)
                return
            with tempfile.NamedTemporaryFile(suffix=".npy", dir=target.parent) as unpacked:
                yield _new_file(Path(unpacked.name), values)
                with zipfile.ZipFile(work, "w", member.compress_type) as archive:
                    archive.write(unpacked.name, member.filename)

    return Stack(path, layout, array.dtype.newbyteorder("="), values, create, range(len(layout)))


def _new_file(path: Path, like: MappedValues) -> MappedValues:
    """Return the values of a new .npy file of the same type, shape and order."""
    created: Any = npy_format.open_memmap(
        path, mode="w+", dtype=like.dtype, shape=like.shape, fortran_order=like.order == "F"
    )
    return replace(like, path=path, offset=created.offset)

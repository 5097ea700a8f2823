"""Stacks of electron microscopes: MRC files (MRC2014), by the package mrcfile (the extra mrc).

A restored file has the header of the other one byte for byte, the extended header included, except for the least, the
largest and the mean value and their deviation, which are those of the restored values.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denoise.files import atomic_file
from denoise.stacks.kinds import check_type, extra
from denoise.stacks.layout import make_layout
from denoise.stacks.mapped import MappedValues
from denoise.stacks.stack import Sink, Stack

AXES = {2: "YX", 3: "ZYX", 4: "QZYX"}  # of an image, a volume or a stack of images, a stack of volumes


@contextmanager
def open_mrc(path: Path, axes: str | None, channels: str) -> Iterator[Stack]:
    """Open an MRC file, mapped into memory."""
    with extra("mrcfile", "mrc", path):
        import mrcfile
    with mrcfile.mmap(path, mode="r") as mrc:
        data = mrc.data
        check_type(path, data.dtype)
        layout = make_layout(str(path), data.shape, axes or AXES[data.ndim], channels)
        values = MappedValues(path, data.dtype, data.offset, data.shape)
        del data

    @contextmanager
    def create(target: Path) -> Iterator[Sink]:
        with atomic_file(target) as work:
            shutil.copyfile(path, work)
            copy = replace(values, path=work)
            yield copy
            with mrcfile.mmap(work, mode="r+") as mrc:
                header = mrc.header
                header.dmin, header.dmax, header.dmean, header.rms = _statistics(copy)

    yield Stack(path, layout, values.dtype.newbyteorder("="), values, create, range(len(layout)))


def _statistics(values: MappedValues) -> tuple[float, float, float, float]:
    """Return the least, the largest and the mean value and their deviation, reading one part after the other."""
    numbers = range(values.shape[0])

    def parts() -> Iterator[NDArray[np.float64]]:
        return (values[(number,)].astype(np.float64) for number in numbers)

    least, largest = min(part.min() for part in parts()), max(part.max() for part in parts())
    mean = sum(part.mean() for part in parts()) / len(numbers)
    square = sum(np.square(part - mean).mean() for part in parts()) / len(numbers)
    return float(least), float(largest), float(mean), float(square) ** 0.5

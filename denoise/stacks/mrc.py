"""Stacks of electron microscopes: MRC files (MRC2014), by the package mrcfile (the extra mrc).

A restored file has the header of the other one byte for byte, the extended header included, except for the least, the
largest and the mean value and their deviation, which are those of the restored values.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from denoise.files import atomic_file
from denoise.stacks.kinds import check_type, extra
from denoise.stacks.layout import make_layout
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

        @contextmanager
        def create(target: Path) -> Iterator[Sink]:
            with atomic_file(target) as work:
                shutil.copyfile(path, work)
                with mrcfile.mmap(work, mode="r+") as copy:
                    yield copy.data
                    _update_statistics(copy)

        yield Stack(path, layout, data.dtype.newbyteorder("="), data, create, range(len(layout)))


def _update_statistics(mrc: Any) -> None:
    """Set the header's statistics to those of the values, of which one part after the other is in memory."""
    parts = mrc.data if mrc.data.ndim > 2 else mrc.data[None]
    least, largest = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    mean = sum(float(part.mean(dtype=np.float64)) for part in parts) / len(parts)
    square = sum(float(np.square(part.astype(np.float64) - mean).mean()) for part in parts) / len(parts)
    header = mrc.header
    header.dmin, header.dmax, header.dmean, header.rms = least, largest, mean, square**0.5
    mrc.flush()

"""Decoded images in memory that all processes of a machine share, within a budget of bytes.

Where an image lies follows from the index of the data alone, so processes need not talk: whoever decodes an image
writes it to its place and then marks it as there. Two that do so at once write the same bytes. The memory is freed when
the last process lets go of it, or when a later run finds that all who held it were killed.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from denoise.images.tensors import Pixels

Shape = tuple[int, int, int, str]  # height, width, channels, dtype

PLACES = (Path("/dev/shm"), Path(tempfile.gettempdir()))  # noqa: S108 - names of our own, mode 600; where /dev/shm is small a file does as well


def nbytes(shape: Shape) -> int:
    """Return how many bytes an image takes."""
    height, width, channels, kind = shape
    return height * width * channels * np.dtype(kind).itemsize


class DecodedCache:
    """Decoded images by number.

    Args:
        key: names what is cached; processes that give the same key and shapes share their images.
        shapes: of the images; those beyond the budget are not kept.
        budget: in bytes.
    """

    def __init__(self, key: str, shapes: Sequence[Shape], budget: int) -> None:
        sizes = np.array([nbytes(shape) for shape in shapes], np.int64)
        ends = np.cumsum(sizes, dtype=np.int64)
        self.count = int(np.searchsorted(ends, budget, side="right"))
        self.shapes = shapes[: self.count]
        self.starts = self.count + ends[: self.count] - sizes[: self.count]  # the marks come first
        size = self.count + int(ends[self.count - 1]) if self.count else 0
        identity = hashlib.sha256(f"{key}:{size}:{shapes[: self.count]}".encode()).hexdigest()[:24]
        opened = _open(f"denoise-{os.getuid()}-{identity}.images", size) if size else None
        if opened is None:
            self.memory, self.count = None, 0
            return
        self.memory = mmap.mmap(opened[0], size)
        self.let_go = weakref.finalize(self, _let_go, *opened)  # at the latest when the program ends

    def get(self, number: int) -> Pixels | None:
        """Return an image (H, W, C) if it is there; its memory is shared and must not be written to."""
        if number >= self.count or self.memory is None or not self.memory[number]:
            return None
        return self._at(number)

    def put(self, number: int, pixels: Pixels) -> None:
        """Keep an image, if it has a place."""
        if number < self.count and self.memory is not None:
            self._at(number)[...] = pixels
            self.memory[number] = 1  # only now: a process that is killed in between leaves no half of an image

    def close(self) -> None:
        """Let go of the memory; the last one frees it, images that are still looked at keep theirs."""
        if self.memory is not None:
            self.memory, self.count = None, 0
            self.let_go()

    def _at(self, number: int) -> Pixels:
        height, width, channels, kind = self.shapes[number]
        flat = np.frombuffer(self.memory, kind, height * width * channels, int(self.starts[number]))  # type: ignore[arg-type]
        return flat.reshape(height, width, channels)


def _open(name: str, size: int) -> tuple[int, Path] | None:
    """Open a file of that size that others may have made, where there is room for it; none where there is no room."""
    for place in PLACES:
        with contextlib.suppress(OSError):
            _sweep(place)
            file = _open_in(place / name, size)
            return file, place / name
    return None


def _open_in(path: Path, size: int) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file).st_nlink == 0:  # freed by its last holder between the two calls
                os.close(file)
                continue
            # Without room of its own a write into a shared file kills the process.
            os.posix_fallocate(file, 0, size)
        except OSError:
            _free(file, path)
            os.close(file)
            raise
        return file


def _let_go(file: int, path: Path) -> None:
    _free(file, path)
    os.close(file)


def _free(file: int, path: Path) -> None:
    """Remove a file if nobody else holds it."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)


def _sweep(place: Path) -> None:
    """Remove what killed processes of ours left behind."""
    for path in _ours(place):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            _free(file, path)
            os.close(file)


def _ours(place: Path) -> Iterator[Path]:
    return place.glob(f"denoise-{os.getuid()}-*.images")

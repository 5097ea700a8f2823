"""DecodedCache: decoded images in memory that all processes of a machine share, within a budget of bytes.

The place of an image in memory follows from the index of the data alone, so processes need not communicate: the one
that decodes an image writes it to its place and then marks it as present. Two that do so at once write the same bytes.
The memory is freed when the last process closes it, or by a later run if all processes that had it open were killed.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from denoise.files import remove
from denoise.images.tensors import Pixels

Shape = tuple[int, int, int, str]  # height, width, channels, dtype

# Where /dev/shm is small, a file on disk serves as well.
FOLDERS = (Path("/dev/shm"), Path(tempfile.gettempdir()))  # noqa: S108 - the file names are ours, their mode is 600


def nbytes(shape: Shape) -> int:
    """Return the size in bytes of an image of that shape."""
    height, width, channels, dtype = shape
    return height * width * channels * np.dtype(dtype).itemsize


class DecodedCache:
    """Decoded images by number.

    Args:
        key: identifies the images; processes with the same key and shapes share them.
        shapes: of the images, by number; those beyond the budget are not cached.
        budget: in bytes.
    """

    def __init__(self, key: str, shapes: Sequence[Shape], budget: int) -> None:
        sizes = np.array([nbytes(shape) for shape in shapes], np.int64)
        ends = np.cumsum(sizes, dtype=np.int64)
        self.count = int(np.searchsorted(ends, budget, side="right"))
        self.shapes = shapes[: self.count]
        # The memory begins with one byte for each image, which says whether it is present.
        self.starts = self.count + ends[: self.count] - sizes[: self.count]
        size = self.count + int(ends[self.count - 1]) if self.count else 0
        identity = hashlib.sha256(f"{key}:{size}:{shapes[: self.count]}".encode()).hexdigest()[:24]
        opened = _open(f"denoise-{os.getuid()}-{identity}.images", size) if size else None
        if opened is None:
            self.memory, self.count = None, 0
            return
        self.memory = mmap.mmap(opened[0], size)
        self.release = weakref.finalize(self, _release, *opened)  # at the latest when the program ends

    def get(self, number: int) -> Pixels | None:
        """Return an image (H, W, C), None if it is not cached; its memory is shared and must not be written to."""
        if number >= self.count or self.memory is None or not self.memory[number]:
            return None
        return self._at(number)

    def put(self, number: int, pixels: Pixels) -> None:
        """Cache an image, if it is within the budget."""
        if number < self.count and self.memory is not None:
            self._at(number)[...] = pixels
            self.memory[number] = 1  # last: a process that is killed before this line leaves no half-written image

    def close(self) -> None:
        """Release the memory; the last process frees it, and images that are still in use stay valid."""
        if self.memory is not None:
            self.memory, self.count = None, 0
            self.release()

    def _at(self, number: int) -> Pixels:
        height, width, channels, dtype = self.shapes[number]
        flat = np.frombuffer(self.memory, dtype, height * width * channels, int(self.starts[number]))  # type: ignore[arg-type]
        return flat.reshape(height, width, channels)


def _open(name: str, size: int) -> tuple[int, Path] | None:
    """Create the file, or open that of another process, in the first folder with room for it; None without room."""
    for folder in FOLDERS:
        with contextlib.suppress(OSError):
            _remove_abandoned(folder)
            file = _open_file(folder / name, size)
            return file, folder / name
    return None


def _open_file(path: Path, size: int) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file).st_nlink == 0:  # removed by its last user between the two calls
                os.close(file)
                continue
            # Reserve the space: a write to a mapped file on a full disk kills the process.
            os.posix_fallocate(file, 0, size)
        except OSError:
            _free(file, path)
            os.close(file)
            raise
        return file


def _release(file: int, path: Path) -> None:
    _free(file, path)
    os.close(file)


def _free(file: int, path: Path) -> None:
    """Remove a file unless another process has it open."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(path, path.parent)


def _remove_abandoned(folder: Path) -> None:
    """Remove the files that killed processes of this user left behind."""
    for path in folder.glob(f"denoise-{os.getuid()}-*.images"):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            _free(file, path)
            os.close(file)

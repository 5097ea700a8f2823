"""A compact set of images by their grey hashes: what a model keeps of the images it was trained on.

Each of N hashes becomes a number below N 2^21, so another image is taken for one of the set with probability 2^-21,
below 1e-6. The sorted numbers are stored as by Elias ("Efficient storage and retrieval by content and address of static
files", 1974): upper bits in unary, lower ones as planes of bits. That is 23 bits an image, 3.7 MB for ImageNet.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from denoise.errors import UserError

LOW_BITS = 21
MAGIC = b"images\x00\x01"  # the last byte is the version
HEADER = struct.Struct("<8sQI")  # magic, number of images, CRC-32 of the rest
MAX_IMAGES = 1 << 24  # a set of 48 MB


@dataclass(frozen=True)
class ImageSet:
    """A set of images."""

    numbers: npt.NDArray[np.uint64]  # of the images, sorted

    @classmethod
    def build(cls, grey_hashes: Iterable[str]) -> "ImageSet":
        """Return the set of the images with these grey hashes (sha256, hex)."""
        prefixes = np.unique(_prefixes(grey_hashes))
        return cls(np.sort(prefixes % _limit(len(prefixes))))

    def contains(self, grey_hashes: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return for each grey hash whether its image is in the set; yes is wrong with probability 2^-21."""
        numbers = _prefixes(grey_hashes) % _limit(len(self.numbers))
        return np.searchsorted(self.numbers, numbers, "right") > np.searchsorted(self.numbers, numbers, "left")

    def to_bytes(self) -> bytes:
        """Return the set as ``read_image_set`` reads it, the same bytes for the same set."""
        count = len(self.numbers)
        upper = np.zeros(2 * count, bool)
        upper[(self.numbers >> np.uint64(LOW_BITS)).astype(np.int64) + np.arange(count)] = True
        lower = [(self.numbers >> np.uint64(bit)) & np.uint64(1) for bit in range(LOW_BITS)]
        body = b"".join(np.packbits(plane.astype(bool)).tobytes() for plane in (upper, *lower))
        return HEADER.pack(MAGIC, count, zlib.crc32(body)) + body


def read_image_set(path: Path) -> ImageSet:
    """Return the set in a file.

    Raises:
        UserError: the file is damaged, or written by another version.
    """
    damaged = UserError(f"{path} is damaged or of another version; fetch the model again, or train it again.")
    with path.open("rb") as file:
        header = file.read(HEADER.size)
        if len(header) != HEADER.size:
            raise damaged
        magic, count, checksum = HEADER.unpack(header)
        if magic != MAGIC or count > MAX_IMAGES or path.stat().st_size != HEADER.size + _body_size(count):
            raise damaged
        body = file.read(_body_size(count))
    upper = np.flatnonzero(_bits(body, 0, 2 * count))
    if zlib.crc32(body) != checksum or len(upper) != count:
        raise damaged
    numbers = (upper - np.arange(count)).astype(np.uint64) << np.uint64(LOW_BITS)
    for bit in range(LOW_BITS):
        plane = _bits(body, _size(2 * count) + bit * _size(count), count)
        numbers |= plane.astype(np.uint64) << np.uint64(bit)
    return ImageSet(numbers)


def _prefixes(grey_hashes: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return the first 64 bits of each hash."""
    return np.fromiter((int(digits[:16], 16) for digits in grey_hashes), np.uint64)


def _limit(count: int) -> np.uint64:
    """Return what the numbers of a set of ``count`` images are below."""
    return np.uint64(max(1, count) << LOW_BITS)


def _bits(body: bytes, start: int, count: int) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(body, np.uint8, _size(count), start), count=count)


def _body_size(count: int) -> int:
    return _size(2 * count) + LOW_BITS * _size(count)


def _size(bits: int) -> int:
    return (bits + 7) // 8

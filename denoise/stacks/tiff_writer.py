"""Writing a stack as TIFF with the directories of another one: description, resolution and private tags, page by page.

ImageJ, OME and tifffile say in the first page's description what the pages are, so the same pages in the same order
with the same description are the same stack. What depends on where bytes lie is made anew. Pages that were compressed
are deflated, without loss.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.files import atomic_file
from denoise.stacks.layout import Index
from denoise.stacks.stack import Sink

BIG = 2**32 - 2**25  # bytes that a classic TIFF holds besides its directories
DESCRIPTION, X_RESOLUTION, Y_RESOLUTION, UNIT = 270, 282, 283, 296
# Tags that say how pixels are stored, which are written anew, and those that point to other places of the file.
STORED = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 288, 289, 292, 293, 317, 320, 322, 323, 324),
    *(325, 338, 339, 340, 341, 347, 529, 530, 531, 532, 32997, 32998),
)
PLACES = (330, 34665, 34853, 40965)
UNCOMPRESSED = 1


@contextmanager
def create_tiff(
    tiff: Any, leading: NDArray[np.int_], files: Sequence[int], page_shape: tuple[int, ...], target: Path
) -> Iterator[Sink]:
    """Open a new TIFF with the directories of an open one, for values of the same shape and type.

    Args:
        tiff: tifffile's TiffFile.
        leading: numbers of pages along the leading axes.
        files: the number in the file of each page.
        page_shape: of a page, as it is stored.
        target: the new file.
    """
    import tifffile

    series = tiff.series[0]
    big = tiff.is_bigtiff or math.prod(series.shape) * series.dtype.itemsize > BIG
    with (
        atomic_file(target) as work,
        tifffile.TiffWriter(work, bigtiff=big, byteorder=tiff.byteorder, shaped=False) as writer,
    ):

        def write(number: int, values: NDArray[Any]) -> None:
            writer.write(values.reshape(page_shape), contiguous=False, metadata=None, **_directory(tiff, number))

        yield _PageSink(leading, files, series.shape[leading.ndim :], series.dtype, write)


class _PageSink:
    """Collects planes into pages, and writes each page once it is complete and its turn has come."""

    def __init__(
        self,
        leading: NDArray[np.int_],
        files: Sequence[int],
        shape: tuple[int, ...],
        dtype: "np.dtype[Any]",
        write: Callable[[int, NDArray[Any]], None],
    ) -> None:
        self._leading, self._files, self._shape, self._dtype, self._write = leading, files, shape, dtype, write
        self._pages: dict[int, NDArray[Any]] = {}  # by the number in the file, incomplete ones
        self._missing: dict[int, int] = {}  # values that a page still lacks
        self._turn = 0

    def __setitem__(self, index: Index, values: NDArray[Any]) -> None:
        """Write the values at an index."""
        numbers, inner = np.asarray(self._leading[index[: self._leading.ndim]]), index[self._leading.ndim :]
        parts = values.reshape(numbers.size, *values.shape[numbers.ndim :])
        for number, part in zip(numbers.flat, parts, strict=True):
            file = self._files[int(number)]
            page = self._pages.setdefault(file, np.empty(self._shape, self._dtype))
            page[inner] = part
            self._missing[file] = self._missing.get(file, page.size) - part.size
        while self._missing.get(self._turn) == 0:
            self._write(self._turn, self._pages.pop(self._turn))
            del self._missing[self._turn]
            self._turn += 1


def _directory(tiff: Any, number: int) -> dict[str, Any]:
    """Return tifffile's arguments for a page with the tags of another one, without those of how it is stored."""
    page = tiff.pages.first
    if number:
        if number >= len(tiff.pages):  # one directory for all pages
            return _storage(page)
        page = tiff.pages.get(number, aspage=True, cache=False)
    descriptions, tags = [], []
    for tag in page.tags:
        if tag.code == DESCRIPTION:
            descriptions.append(_raw(tag).rstrip(b"\0"))
        elif tag.code not in (*STORED, *PLACES, X_RESOLUTION, Y_RESOLUTION, UNIT):
            tags.append((tag.code, int(tag.dtype), None, _raw(tag), False))
    tags += [(DESCRIPTION, 2, None, text + b"\0", False) for text in descriptions[1:]]
    first = _not_truncated(descriptions[0]) if descriptions else None
    return _storage(page) | _resolution(page) | {"description": first, "extratags": tags}


def _storage(page: Any) -> dict[str, Any]:
    """Return how the pixels of a page are stored."""
    samples, compressed = page.samplesperpixel, int(page.compression) != UNCOMPRESSED
    return {
        "photometric": int(page.photometric),
        "planarconfig": int(page.planarconfig) if samples > 1 else None,
        "extrasamples": page.extrasamples or None,
        "compression": "zlib" if compressed else None,
        "predictor": compressed and page.dtype.kind != "f",
        "subfiletype": page.subfiletype or None,
        "software": False,
    }


def _resolution(page: Any) -> dict[str, Any]:
    sides = [page.tags.valueof(tag) for tag in (X_RESOLUTION, Y_RESOLUTION)]
    if None in sides:
        return {}
    return {"resolution": tuple(sides), "resolutionunit": page.tags.valueof(UNIT)}


def _raw(tag: Any) -> bytes:
    """Return the value of a tag as it is stored."""
    handle = tag.parent.filehandle
    handle.seek(tag.valueoffset)
    return bytes(handle.read(tag.valuebytecount))


def _not_truncated(description: bytes) -> bytes:
    """Return tifffile's own description without the word that one directory stands for all pages."""
    if b'"truncated"' not in description:
        return description
    return json.dumps({key: value for key, value in json.loads(description).items() if key != "truncated"}).encode()

"""Stacks in TIFF files: several pages, ImageJ, OME, BigTIFF, compressed; values of 8 and 16 bits and floats.

What tifffile finds as one series of pages of one shape is an array; its leading axes count pages, the others lie
within a page. Uncompressed pages that follow one another are mapped into memory, others decoded one at a time.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.errors import UserError, first_line
from denoise.images.io import MAX_RATIO, SMALL
from denoise.stacks.kinds import check_type
from denoise.stacks.layout import Index, make_layout
from denoise.stacks.mapped import MappedValues
from denoise.stacks.stack import Array, Stack
from denoise.stacks.tiff_writer import create_tiff

KINDS = ("imagej", "ome", "shaped", "uniform", "generic")  # of series, by tifffile's names, that can be written again
GREY, RGB = (0, 1), 2  # values of PhotometricInterpretation
SUB_IFDS = 330


@contextmanager
def open_tiff(path: Path, axes: str | None, channels: str) -> Iterator[Stack]:
    """Open a TIFF file.

    Raises:
        UserError: it holds several series, further pages, or values of another kind.
    """
    import tifffile

    tifffile.logger().setLevel("CRITICAL")  # what it finds wrong is told by us
    with tifffile.TiffFile(path, is_mmstack=False) as tiff:
        series = _only_series(tiff, path)
        page = series.keyframe
        _check_page(page, path, tiff.filehandle.size)
        check_type(path, series.dtype)
        layout = make_layout(str(path), series.shape, axes or series.axes, channels, int(page.photometric) == RGB)
        pages = math.prod(series.shape) // math.prod(page.shape)
        files = _page_numbers(series, pages)
        sides = _leading(series.shape, pages, path)
        leading = np.arange(pages).reshape(sides)
        if any(axis in layout.axes[: len(sides)] for axis in "YX"):
            raise UserError(f"{path} counts {sides} pages, which are no rows or columns: give other --axes.")
        array: Array = _mapped(series, tiff) if series.dataoffset is not None else _Pages(series, leading, path)
        page_of = [int(np.min(leading[layout.index(number)[: len(sides)]])) for number in range(len(layout))]
        order = sorted(range(len(layout)), key=lambda number: files[page_of[number]])
        create = partial(create_tiff, tiff, leading, files, page.shape)
        _check_decodes(array, layout.index(order[0]), page, path)
        yield Stack(path, layout, series.dtype.newbyteorder("="), array, create, order, _remarks(tiff))


def _only_series(tiff: Any, path: Path) -> Any:
    """Return the one series of a file."""
    if len(tiff.series) != 1:
        shapes = ", ".join("x".join(map(str, series.shape)) for series in tiff.series[:4])
        raise UserError(
            f"{path} holds {len(tiff.series)} series of images ({shapes}), expected one; save each to its own file."
        )
    series = tiff.series[0]
    if series.kind not in KINDS:
        raise UserError(f"{path} is a TIFF of the kind {series.kind}, which is not read; save it as OME-TIFF.")
    if series.is_multifile:
        raise UserError(f"{path} is one of several files that make a stack, which are not read; save them as one.")
    if None in series.pages:
        raise UserError(f"{path} lacks {sum(page is None for page in series.pages)} of its pages; save it anew.")
    return series


def _check_page(page: Any, path: Path, size: int) -> None:
    colour, samples = int(page.photometric), page.samplesperpixel
    if colour not in (*GREY, RGB):
        raise UserError(f"{path} holds {page.photometric.name} values, expected grey or RGB; convert it first.")
    if colour == RGB and samples != 3:
        raise UserError(
            f"{path} holds RGB with {samples} channels, expected 3 in a stack; save it without transparency."
        )
    if page.imagedepth > 1:
        raise UserError(f"{path} holds volumes in its pages, which are not read; save a plane a page.")
    if page.bitspersample != page.dtype.itemsize * 8:
        raise UserError(f"{path} holds samples of {page.bitspersample} bits, expected 8, 16 or 32; convert it first.")
    values = math.prod(page.shape)
    if values > SMALL and values > MAX_RATIO * size:
        raise UserError(f"{path} speaks of pages of {values} values, its {size} bytes cannot hold them.")


def _page_numbers(series: Any, pages: int) -> list[int]:
    """Return for each page of a series its number in the file; a file may have one directory for all its pages."""
    if len(series.pages) == 1 or series.is_truncated:
        return list(range(pages))
    return [int(page.index) if isinstance(page.index, int) else int(page.index[0]) for page in series.pages]


def _leading(shape: tuple[int, ...], pages: int, path: Path) -> tuple[int, ...]:
    """Return the leading sides of a series that count its pages."""
    for count in range(len(shape) + 1):
        if math.prod(shape[:count]) == pages:
            return shape[:count]
    raise UserError(f"{path} has {pages} pages, which its sides {shape} do not count; save it as OME-TIFF.")


def _mapped(series: Any, tiff: Any) -> MappedValues:
    dtype = series.dtype.newbyteorder(tiff.byteorder)
    return MappedValues(Path(tiff.filehandle.path), dtype, series.dataoffset, series.shape)


@dataclass(frozen=True)
class _Pages:
    """The values of a series whose pages are decoded one at a time; the last one is kept."""

    series: Any
    leading: NDArray[np.int_]  # number of the page at each place along the leading axes
    path: Path
    _last: dict[int, NDArray[Any]] = field(default_factory=dict)

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Return the values at an index of one entry for each axis."""
        numbers, inner = np.asarray(self.leading[index[: self.leading.ndim]]), index[self.leading.ndim :]
        parts = [self._page(int(number))[inner] for number in numbers.flat]
        return np.stack(parts).reshape(*numbers.shape, *parts[0].shape)

    def _page(self, number: int) -> NDArray[Any]:
        if number not in self._last:
            self._last.clear()
            decoded = self.series.pages[number].asarray()
            self._last[number] = decoded.reshape(self.series.shape[self.leading.ndim :])
        return self._last[number]


def _check_decodes(array: Array, index: Index, page: Any, path: Path) -> None:
    """Refuse what tifffile cannot decode, by the name of its compression."""
    try:
        _ = array[index]
    except Exception as error:
        missing = "imagecodecs" in str(error)
        problem = "needs `pip install 'noise2x[codecs]'`" if missing else f"does not decode: {first_line(error)}"
        raise UserError(f"{path} is compressed with {page.compression.name}, which {problem}.") from error


def _remarks(tiff: Any) -> tuple[str, ...]:
    if tiff.pages.first.tags.get(SUB_IFDS):
        return (f"{tiff.filename} has reduced copies of its images, which a restored file does not have",)
    return ()

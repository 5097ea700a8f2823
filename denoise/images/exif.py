"""EXIF and orientation: turning an image upright, and the EXIF block that is written with it."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from denoise.images.tensors import Pixels

ORIENTATION = 274
RESOLUTION = X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
DIRECTORIES = {34665: "ExifTag", 34853: "GPSTag"}  # tags that point to a directory of their own
TEXTS = (270, 271, 272, 305, 306, 315, 316, 33432)  # description, make, model, software, date, artist, host, copyright


def orientation_and_exif(image: Image.Image) -> tuple[int, bytes]:
    """Return the orientation (1 to 8) that the pixels still need, and the EXIF block of the upright image.

    A block that cannot be parsed is dropped: the image is good without it.
    """
    try:
        tags = Image.Image.getexif(image)  # PNG's own getexif would decode the image first
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # both decoders turn a TIFF upright themselves
            return 1, _tiff_exif(tags)
        orientation = int(tags.get(ORIENTATION, 1))
        return (orientation if orientation in range(1, 9) else 1), _reset_orientation(
            bytes(image.info.get("exif") or b"")
        )
    except Exception:
        return 1, b""


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn (H, W, ...) upright from an EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def photo_tags(tags: Image.Exif) -> Iterator[tuple[int, Any]]:
    """Yield the tags of a TIFF or an EXIF block that describe the photograph, not how its pixels are stored.

    A directory's value is a mapping. A resolution without a unit and with square pixels describes nothing.
    """
    unitless = tags.get(RESOLUTION_UNIT) == 1 and tags.get(X_RESOLUTION) == tags.get(Y_RESOLUTION)
    for tag in sorted((*TEXTS, *(() if unitless else RESOLUTION), *DIRECTORIES)):
        if tag in tags:
            yield tag, tags.get_ifd(tag) if tag in DIRECTORIES else tags[tag]


def _tiff_exif(tags: Image.Exif) -> bytes:
    """Return an EXIF block of the photograph's tags in a TIFF."""
    block = Image.Exif()
    for tag, value in photo_tags(tags):
        block[tag] = value
    return block.tobytes() if len(block) else b""


def _reset_orientation(exif: bytes) -> bytes:
    """Set the orientation in an EXIF block to 1 and leave every other byte, so that maker notes stay readable."""
    if not exif:
        return b""
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    entry = tag_entries(exif[start:]).get(ORIENTATION)
    if entry is None:
        return exif
    patched = bytearray(exif)
    struct.pack_into(_byte_order(exif[start:]) + "H", patched, start + entry + 8, 1)  # after tag, type and count
    return bytes(patched)


def tag_entries(tiff: bytes) -> dict[int, int]:
    """Return the offset of the entry of each tag in the first directory of a TIFF, or of an EXIF block's TIFF part."""
    order = _byte_order(tiff)
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, first)
    entries = range(first + 2, first + 2 + 12 * count, 12)
    return {struct.unpack_from(order + "H", tiff, entry)[0]: entry for entry in entries}


def _byte_order(tiff: bytes) -> str:
    return "<" if tiff[:2] == b"II" else ">"

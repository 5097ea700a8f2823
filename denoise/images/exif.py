"""EXIF and orientation: what turns an image upright, and the block that is written with it."""

import struct

import numpy as np
from PIL import Image, TiffImagePlugin

from denoise.images.encoders import photo_tags
from denoise.images.tensors import Pixels

ORIENTATION = 274


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Turn (H, W, ...) upright from an EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _exif(image: Image.Image) -> tuple[int, bytes]:
    """Return the orientation that the pixels still need, and the EXIF block of the upright image.

    A block that cannot be parsed is dropped: its image is good without it.
    """
    try:
        tags = Image.Image.getexif(image)  # PNG's own getexif would decode the image first
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # both decoders turn a TIFF upright themselves
            return 1, _photo_exif(tags)
        orientation = int(tags.get(ORIENTATION, 1))
        return (orientation if orientation in range(1, 9) else 1), _upright(bytes(image.info.get("exif") or b""))
    except Exception:
        return 1, b""


def _photo_exif(tags: Image.Exif) -> bytes:
    """Return an EXIF block of what a TIFF's own tags say about the photograph."""
    kept = Image.Exif()
    for tag, value in photo_tags(tags):
        kept[tag] = value
    return kept.tobytes() if len(kept) else b""


def _upright(exif: bytes) -> bytes:
    """Set the orientation in an EXIF block to 1 and leave every other byte, so that maker notes stay readable."""
    if not exif:
        return b""
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    order = "<" if exif[start : start + 2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", exif, start + 4)
    (count,) = struct.unpack_from(order + "H", exif, start + first)
    patched = bytearray(exif)
    for entry in range(start + first + 2, start + first + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", exif, entry) == (ORIENTATION,):
            struct.pack_into(order + "H", patched, entry + 8, 1)
    return bytes(patched)

"""The encoders that Pillow and OpenCV lack: 16-bit PNG and TIFF with profile and EXIF, any channels, pixel for pixel.

Samples are (H, W, C) with C 1 (grey), 2 (grey, alpha), 3 (R, G, B) or 4 (R, G, B, alpha).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

Samples = NDArray[Any]

BAND = 256  # rows that are compressed at a time
PHOTO_TAGS = (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853)
IFDS = (34665, 34853)  # tags that hold a directory of their own: EXIF, GPS


def write_png16(file: IO[bytes], samples: Samples, icc: bytes, exif: bytes) -> None:
    """Write a 16-bit PNG (W3C PNG, section 11); Pillow has no 16-bit colour, OpenCV no grey with alpha."""
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    if icc:
        _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if exif:
        _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    packer = zlib.compressobj()
    above = np.zeros((1, width * channels * 2), np.uint8)
    for top in range(0, height, BAND):
        rows = samples[top : top + BAND].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        lines = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)  # filter 2: minus the row above
        lines[:, 1:] = rows - np.concatenate([above, rows[:-1]])
        above = rows[-1:]
        _chunk(file, b"IDAT", packer.compress(lines.tobytes()))
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def write_tiff(file: IO[bytes], samples: Samples, icc: bytes, exif: bytes) -> None:
    """Write a TIFF of 8 or 16 bits, deflated strips with horizontal differences (TIFF 6.0, section 14)."""
    if samples.shape[2] == 2 and samples.dtype == np.uint16:  # hardly any program reads 16-bit grey with alpha
        samples = samples[..., [0, 0, 0, 1]]
    height, width, channels = samples.shape
    strips = list(_tiff_strips(samples))
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    tags[256], tags[257], tags[258] = width, height, (samples.itemsize * 8,) * channels
    tags[259], tags[262], tags[277], tags[278] = 8, 2 if channels > 2 else 1, channels, BAND
    tags[284], tags[317] = 1, 2
    if channels in (2, 4):
        tags[338] = 2
    sizes = [len(strip) for strip in strips]
    tags.tagtype[273] = tags.tagtype[279] = 4
    tags[273] = tuple(int(offset) for offset in np.cumsum([0, *sizes[:-1]]))  # Pillow adds where the tags end
    tags[279] = tuple(sizes)
    if icc:
        tags[34675] = icc
    if exif:
        block = Image.Exif()
        block.load(exif)
        for tag, value in photo_tags(block):
            tags[tag] = value
    tags.save(file)
    for strip in strips:
        file.write(strip)


def _tiff_strips(samples: Samples) -> Iterator[bytes]:
    for top in range(0, len(samples), BAND):
        rows = samples[top : top + BAND]
        differences = rows.astype(rows.dtype.newbyteorder("<"))
        differences[:, 1:] -= rows[:, :-1]
        yield zlib.compress(differences.tobytes())


def photo_tags(tags: Image.Exif) -> Iterator[tuple[int, Any]]:
    """Yield what a TIFF's tags, or an EXIF block, say about the photograph and not about how its pixels are stored."""
    for tag in PHOTO_TAGS:
        if tag in tags:
            yield tag, tags.get_ifd(tag) if tag in IFDS else tags[tag]

"""Encoders for what Pillow and OpenCV cannot write: 16-bit PNG and TIFF with profile and EXIF, of any channels.

Samples are (H, W, C) with C 1 (grey), 2 (grey, alpha), 3 (R, G, B) or 4 (R, G, B, alpha).
"""

import struct
import zlib
from numbers import Rational
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from denoise.images.exif import (
    DIRECTORIES,
    RESOLUTION,
    RESOLUTION_UNIT,
    X_RESOLUTION,
    Y_RESOLUTION,
    photo_tags,
    tag_entries,
)

Samples = NDArray[Any]

BAND = 256  # rows that are compressed at a time
ASCII, LONG = 2, 4  # types of a TIFF tag
FILE_HEAD = 4096  # bytes; tifffile puts a file's directory of some 20 tags first


def write_png16(file: IO[bytes], samples: Samples, icc: bytes, exif: bytes) -> None:
    """Write a 16-bit PNG (W3C PNG, section 11); Pillow has no 16-bit colour, OpenCV no grey with alpha."""
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    file.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    if icc:
        _write_chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if exif:
        _write_chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    packer = zlib.compressobj()
    above = np.zeros((1, width * channels * 2), np.uint8)
    for top in range(0, height, BAND):
        rows = samples[top : top + BAND].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        lines = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)  # filter 2: minus the row above
        lines[:, 1:] = rows - np.concatenate([above, rows[:-1]])
        above = rows[-1:]
        _write_chunk(file, b"IDAT", packer.compress(lines.tobytes()))
    _write_chunk(file, b"IDAT", packer.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def write_tiff(file: IO[bytes], samples: Samples, icc: bytes, exif: bytes) -> None:
    """Write a TIFF of 8 or 16 bits, deflated, to a file that is open for reading too (EXIF is linked in afterwards)."""
    import tifffile

    if samples.shape[2] == 2 and samples.dtype == np.uint16:  # hardly any program reads 16-bit grey with alpha
        samples = samples[..., [0, 0, 0, 1]]
    channels = samples.shape[2]
    photo = _photo(exif)
    encoded = ((tag, _directory(tag, photo[tag])) for tag in DIRECTORIES if photo.get(tag))
    directories = {tag: directory for tag, directory in encoded if directory is not None}
    texts = {tag: value for tag, value in photo.items() if tag not in (*DIRECTORIES, *RESOLUTION)}
    tifffile.imwrite(
        file,
        samples if channels > 1 else samples[..., 0],
        byteorder="<",
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        rowsperstrip=BAND,
        compression="zlib",
        predictor=True,
        iccprofile=icc or None,
        **_resolution(photo),
        software=False,
        metadata=None,
        extratags=[(tag, ASCII, 0, _ascii(text), True) for tag, text in texts.items()]
        + [(DIRECTORIES[tag], LONG, 1, 0, True) for tag in directories],
    )
    for tag, directory in directories.items():
        _append_directory(file, tag, directory)


def _photo(exif: bytes) -> dict[int, Any]:
    """Return the tags of an EXIF block that describe the photograph, none where it is empty or broken."""
    block = Image.Exif()
    try:
        block.load(exif)
        return dict(photo_tags(block))
    except Exception:  # broken bytes make the parser raise nearly anything
        return {}


def _ascii(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("ascii", "replace")


def _resolution(photo: dict[int, Any]) -> dict[str, Any]:
    """Return tifffile's arguments for the photograph's resolution, none where it has no sound one."""
    sides = [photo.get(tag) for tag in (X_RESOLUTION, Y_RESOLUTION)]
    ratios = [(side.numerator, side.denominator) for side in sides if isinstance(side, Rational) and side.denominator]
    if len(ratios) < 2:
        return {}
    unit = photo.get(RESOLUTION_UNIT)
    return {"resolution": ratios, "resolutionunit": unit if unit in (1, 2, 3) else None}


def _directory(tag: int, values: Any) -> TiffImagePlugin.ImageFileDirectory_v2 | None:
    """Return an EXIF or GPS directory, None where its values are so broken that it cannot be encoded."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II", group=tag)
    try:
        directory.update(values)
        directory.tobytes(0)
    except Exception:  # of values whose types do not fit, nearly any
        return None
    return directory


def _append_directory(file: IO[bytes], tag: int, directory: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Append an EXIF or GPS directory, which tifffile cannot encode, and point the file's tag at it."""
    offset = file.seek(0, 2)
    if offset % 2:  # directories start at even offsets
        offset += file.write(b"\0")
    file.write(directory.tobytes(offset))
    file.seek(0)
    entries = tag_entries(file.read(FILE_HEAD))
    file.seek(entries[tag] + 8)  # after tag, type and count
    file.write(struct.pack("<I", offset))

"""Decoders of 8-bit images (Pillow) and of 16-bit images (OpenCV), and the check of what a file holds.

Pillow would silently reduce 16-bit colour to 8 bits, so OpenCV decodes 16 bits. Sample values are taken as the file
stores them; only CMYK is converted.
"""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin

from denoise.errors import UserError
from denoise.images.tensors import Pixels

Planes = tuple[Pixels, Pixels | None, bytes]  # pixels (H, W, C), alpha (H, W) or None, colour profile


def file_head(source: Path | bytes) -> bytes:
    """Return the first bytes of a file; in a PNG 24 is the bit depth and 25 the colour type, which Pillow hides."""
    if isinstance(source, bytes):
        return source[:26]
    with source.open("rb") as file:
        return file.read(26)


def sample_bits(image: Image.Image, head: bytes, name: str) -> int:
    """Return 8 or 16, the bits of a sample.

    Raises:
        UserError: the file holds several images, or samples that are neither 8 nor 16 bits and unsigned.
    """
    if image.format != "MPO" and (pages := _count_pages(image)) > 1:
        raise UserError(f"{name} holds {pages} images, expected one; split it into files of one image.")
    if image.format == "PNG":
        return 16 if head[24] == 16 else 8
    if image.format == "PPM" and isinstance(image, ImageFile.ImageFile):
        args = image.tile[0].args
        if image.mode == "I" or (isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255):
            raise UserError(f"{name} is a PPM of more than 8 bits, expected 8; convert it to PNG or TIFF.")
    return _tiff_sample_bits(image.tag_v2, name) if isinstance(image, TiffImagePlugin.TiffImageFile) else 8


def _tiff_sample_bits(tags: Any, name: str) -> int:
    bits: set[int] = set(tags.get(258, (1,)))
    sample_formats: set[int] = set(tags.get(339, (1,)))
    if sample_formats != {1}:
        kind = "floating-point" if 3 in sample_formats else "signed"
        raise UserError(f"{name} holds {kind} samples, expected unsigned ones of 8 or 16 bits; convert it first.")
    if not bits <= {1, 2, 4, 8} and bits != {16}:
        raise UserError(f"{name} holds samples of {max(bits)} bits, expected 8 or 16; convert it first.")
    unsupported = tags.get(262) not in (0, 1, 2) or tags.get(284, 1) != 1 or 1 in tags.get(338, ())
    if bits == {16} and unsupported:
        raise UserError(
            f"{name} stores 16 bits in a way that is not supported (expected grey or RGB, the samples of a pixel "
            "together, no premultiplied alpha); convert it to a 16-bit PNG."
        )
    return max(8, *bits)


def _count_pages(image: Image.Image) -> int:
    """Count the images in a file, without the thumbnails that a TIFF may carry."""
    count = int(getattr(image, "n_frames", 1))
    if count == 1 or not isinstance(image, TiffImagePlugin.TiffImageFile):
        return count
    full = 0
    for page in range(count):
        image.seek(page)
        if not int(image.tag_v2.get(254, 0)) & 1:
            full += 1
    image.seek(0)
    return full


def decode8(image: Image.Image) -> Planes:
    """Return the samples of an 8-bit image that Pillow has opened: palettes, bilevel, YCbCr and CMYK converted."""
    icc = bytes(image.info.get("icc_profile") or b"")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "CMYK":
        image, icc = _cmyk_to_srgb(image, icc), b""
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    decoded = with_channel_axis(np.asarray(image if image.mode == mode else image.convert(mode)))
    if not mode.endswith("A"):
        return decoded, None, icc
    return np.ascontiguousarray(decoded[..., :-1]), np.ascontiguousarray(decoded[..., -1]), icc


def _cmyk_to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Convert by the colour profile, or by the plain formula where there is none that works."""
    converted = None
    if icc:
        with suppress(ImageCms.PyCMSError, OSError):
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
    return converted or image.convert("RGB")


def decode16(image: Image.Image, source: Path | bytes, head: bytes) -> Planes:
    """Return the samples of a 16-bit PNG or TIFF that Pillow has opened, decoded by OpenCV."""
    import cv2

    encoded = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.fromfile(source, np.uint8)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("its 16-bit samples cannot be decoded")
    decoded = with_channel_axis(decoded)
    pixels = np.ascontiguousarray(decoded[..., 2::-1] if decoded.shape[2] > 1 else decoded)  # OpenCV's order is BGR
    alpha = np.ascontiguousarray(decoded[..., 3]) if decoded.shape[2] == 4 else None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(262) == 0:  # min is white; OpenCV ignores it at 16 bits
            pixels = 65535 - pixels
        if 2 not in image.tag_v2.get(338, ()):  # a fourth sample that is no alpha, as Pillow drops it at 8 bits
            alpha = None
    elif head[25] in (0, 4):  # grey PNG, with alpha decoded to BGRA
        pixels = np.ascontiguousarray(pixels[..., :1])
        if "transparency" in image.info:
            alpha = np.where(pixels[..., 0] == image.info["transparency"], 0, 65535).astype(np.uint16)
    return pixels, alpha, bytes(image.info.get("icc_profile") or b"")


def with_channel_axis(decoded: Pixels) -> Pixels:
    """Return (H, W) or (H, W, C) as (H, W, C)."""
    return decoded.reshape(*decoded.shape[:2], -1)

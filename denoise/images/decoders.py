"""Decoders of 8-bit images (Pillow) and of 16-bit images (OpenCV), and the check of what a file holds.

Pillow would silently reduce 16-bit colour to 8 bits, so OpenCV decodes 16 bits. Sample values are taken as the file
stores them; only CMYK is converted.
"""

import io
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin

from denoise.errors import UserError
from denoise.images.tensors import Pixels

BIT_DEPTH, COLOUR_TYPE = 24, 25  # positions in the head of a PNG, which Pillow hides
BINARY_PPM = (b"P4", b"P5", b"P6")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")  # of 8 bits
Planes = tuple[Pixels, Pixels | None, bytes]  # pixels (H, W, C), alpha (H, W) or None, colour profile


def sample_bits(image: Image.Image, head: bytes, name: str) -> int:
    """Return 8 or 16, the bits of a sample of an image that is no TIFF.

    Raises:
        UserError: the file holds several images, or samples that are neither 8 nor 16 bits and unsigned.
    """
    if (images := _count_images(image)) > 1:
        raise UserError(f"{name} holds {images} images, expected one; split it into files of one image.")
    if image.format == "PNG" and head[BIT_DEPTH] == 16:
        return 16
    if image.format == "PPM" and isinstance(image, ImageFile.ImageFile):
        _refuse_unusual_ppm(image, head, name)
    if image.mode not in MODES:
        raise UserError(f"{name} holds values of the kind {image.mode}, expected 8 or 16 bits; convert it first.")
    return 8


def _refuse_unusual_ppm(image: ImageFile.ImageFile, head: bytes, name: str) -> None:
    """Refuse PFM (floats), more than 8 bits, and several images one after the other."""
    if image.mode == "F":
        raise UserError(f"{name} holds floating-point samples, expected unsigned ones of 8 bits; convert it first.")
    _, _, offset, args = image.tile[0]
    if image.mode == "I" or (isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255):
        raise UserError(f"{name} is a PPM of more than 8 bits, expected 8; convert it to PNG or TIFF.")
    if head[:2] in BINARY_PPM and image.fp is not None:
        row = (image.width + 7) // 8 if image.mode == "1" else image.width * len(image.getbands())
        image.fp.seek(offset + row * image.height)
        if image.fp.read(2) in BINARY_PPM:
            raise UserError(f"{name} holds several images, expected one; split it into files of one image.")


def _count_images(image: Image.Image) -> int:
    """Count the images in a file; in the MPO of a camera without previews, which are smaller than its main image."""
    count = int(getattr(image, "n_frames", 1))
    if count == 1 or image.format != "MPO":
        return count
    pixels, images = image.width * image.height, 1
    for frame in range(1, count):
        image.seek(frame)
        images += image.width * image.height >= pixels
    image.seek(0)
    return images


def decode8(image: Image.Image, head: bytes) -> Planes:
    """Return the samples of an 8-bit image that Pillow has opened: palettes, bilevel, YCbCr and CMYK converted."""
    icc = bytes(image.info.get("icc_profile") or b"")
    if image.format == "PNG" and head[COLOUR_TYPE] == 0 and head[BIT_DEPTH] in (2, 4) and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2 ** head[BIT_DEPTH] - 1)  # Pillow stretches the samples, but not this
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


def decode16(image: Image.Image, encoded: NDArray[np.uint8], head: bytes, page: int) -> Planes:
    """Return the samples of a 16-bit PNG or TIFF that Pillow has opened, decoded by OpenCV.

    Args:
        image: from Pillow, which knows what OpenCV does not tell.
        encoded: the bytes of the file.
        head: the first of these.
        page: the page of a TIFF that is the image.
    """
    import cv2

    cv2.utils.logging.setLogLevel(0)  # errors are told by us
    _, images = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
    decoded = images[0] if images else np.empty(0)
    if decoded.dtype != np.uint16 or decoded.shape[:2] != image.size[::-1]:
        raise ValueError("its 16-bit samples cannot be decoded")
    decoded = with_channel_axis(decoded)
    pixels = np.ascontiguousarray(decoded[..., 2::-1] if decoded.shape[2] > 1 else decoded)  # OpenCV's order is BGR
    alpha = np.ascontiguousarray(decoded[..., 3]) if decoded.shape[2] == 4 else None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(262) == 0:  # min is white; OpenCV ignores it at 16 bits
            pixels = 65535 - pixels
    elif head[COLOUR_TYPE] in (0, 4):  # grey PNG, with alpha decoded to BGRA
        pixels = np.ascontiguousarray(pixels[..., :1])
        if "transparency" in image.info:
            alpha = np.where(pixels[..., 0] == image.info["transparency"], 0, 65535).astype(np.uint16)
    return pixels, alpha, bytes(image.info.get("icc_profile") or b"")


def with_channel_axis(decoded: Pixels) -> Pixels:
    """Return (H, W) or (H, W, C) as (H, W, C)."""
    return decoded.reshape(*decoded.shape[:2], -1)

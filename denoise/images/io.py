"""Images between files and tensors: one reader and one writer for every format, pad and unpad.

Pillow decodes 8 bits. It would silently reduce 16-bit colour to 8 bits, so OpenCV decodes those. Pixel values are
taken as the file stores them: gamma chunks and colour profiles change nothing, they are kept and written back.
"""

import hashlib
import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin, UnidentifiedImageError

from denoise.errors import UserError
from denoise.images.encoders import write_png16, write_tiff
from denoise.images.exif import _exif, _turn
from denoise.images.tensors import Pixels

READS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm")
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
SAVE: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "lossless": True, "exact": True},
    ".bmp": {"format": "BMP"},
    ".jpg": JPEG,
    ".jpeg": JPEG,
}
TIFF = (".tif", ".tiff")
WRITES = (*SAVE, *TIFF)
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")  # never EPS and the like, which run programs
LARGEST = 2**30  # pixels; OpenCV's own limit
LONGEST_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}  # libjpeg, WebP
NO_ALPHA = (".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded image, upright, with what is needed to write it back.

    Attributes:
        pixels: (H, W, C) uint8 or uint16, C 1 (grey) or 3 (R, G, B).
        alpha: (H, W) of the same type, or None.
        icc: the colour profile, empty where there is none.
        exif: the EXIF block with its orientation set to 1, empty where there is none.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    icc: bytes = b""
    exif: bytes = b""


def read_image(source: Path | bytes) -> DecodedImage:
    """Decode an image file, or its bytes, and turn it upright as its EXIF orientation says.

    Palette, 1-bit, YCbCr and CMYK images become grey or RGB. Of several images in one file (MPO of a camera)
    only the main one is read; other files of several pages are refused rather than cut to their first.

    Raises:
        UserError: there is no such file, it does not decode, or it holds something else than one 8 or 16-bit image.
    """
    with _opened(source) as (image, name):
        head = _head(source)
        depth = _depth(image, head, name)
        image.load()  # at 16 bits too: it says what is broken, OpenCV only that something is
        orientation, exif = _exif(image)
        pixels, alpha, icc = _decode16(image, source, head) if depth == 16 else _decode8(image)
        upright = _turn(alpha, orientation) if alpha is not None else None
        return DecodedImage(_turn(pixels, orientation), upright, icc, exif)


def decode_quickly(data: bytes, channels: int) -> Pixels | None:
    """Decode an upright 8-bit JPEG or PNG to (H, W, C) with OpenCV, which takes half of Pillow's time for a JPEG.

    It says nothing where bytes are broken, so they must be known to be sound; what it does not understand is None.
    """
    import cv2

    kind = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), kind)
    return None if decoded is None else _with_channels(decoded)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright image, from the head of its file only.

    Raises:
        UserError: as ``read_image``, as far as the head of the file shows it.
    """
    with _opened(path) as (image, _):
        width, height = image.size
        orientation, _exif_block = (1, b"") if image.format == "TIFF" else _exif(image)  # a TIFF's size is upright
        return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def pixel_hash(pixels: Pixels) -> str:
    """Return the sha256, in hex, of the decoded pixels: of their shape, their type and their bytes."""
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.name}\n".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def write_image(path: Path, image: DecodedImage) -> None:
    """Write an image in the format of the file's extension: all of it or nothing.

    PNG and TIFF hold 8 and 16 bits, WebP (lossless), JPEG (quality 95, no chroma subsampling) and BMP hold 8: 16 bits
    are rounded to 8 for them. PNG, TIFF, JPEG and WebP keep colour profile and EXIF.

    Raises:
        UserError: as ``check_target``, or the file cannot be written.
    """
    check_target(path, image)
    suffix = path.suffix.lower()
    samples = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            if suffix in TIFF:
                write_tiff(file, samples, image.icc, image.exif)
            elif suffix == ".png" and samples.dtype == np.uint16:
                write_png16(file, samples, image.icc, image.exif)
            else:
                _write8(file, samples, suffix, image)
        part.replace(path)
    except (OSError, ValueError, struct.error) as error:  # the last two: metadata or pixels beyond a format's limits
        raise UserError(f"cannot write {path}: {_reason(error)}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def check_target(path: Path, image: DecodedImage | None = None) -> None:
    """Raise UserError where this program cannot write such a file, or its format cannot hold ``image``."""
    suffix = path.suffix.lower()
    if suffix not in WRITES:
        raise UserError(f"cannot write {path}: its extension is none of {', '.join(WRITES)}; choose one of these.")
    if image is None:
        return
    if image.alpha is not None and suffix in NO_ALPHA:
        raise UserError(f"cannot write {path}: {suffix} has no transparency, the image has; choose .png or .tif.")
    limit = LONGEST_SIDE.get(suffix)
    height, width = image.pixels.shape[:2]
    if limit and max(height, width) > limit:
        raise UserError(
            f"cannot write {path}: {suffix} holds at most {limit} pixels a side, the image is {width}x{height}; "
            "choose .png or .tif."
        )


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[Image.Image, str]]:
    """Open an image and name it in every error."""
    name = "image" if isinstance(source, bytes) else str(source)
    Image.MAX_IMAGE_PIXELS = None  # Pillow takes large images for decompression bombs; these are the user's own
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"it has {image.width}x{image.height} pixels, more than 2^30")
            yield image, name
    except UserError:
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise UserError(f"{name} does not decode as an image: it is none of {kinds}, or broken.") from None
    except Exception as error:  # broken bytes make decoders raise nearly anything
        raise UserError(f"{name} does not decode as an image: {_reason(error)}.") from error


def _head(source: Path | bytes) -> bytes:
    """Return the first bytes of a file; in a PNG 24 is the bit depth and 25 the colour type, which Pillow hides."""
    if isinstance(source, bytes):
        return source[:26]
    with source.open("rb") as file:
        return file.read(26)


def _depth(image: Image.Image, head: bytes, name: str) -> int:
    """Return 8 or 16, the bits of a sample; refuse what is not one image of such samples."""
    if image.format != "MPO" and (pages := _pages(image)) > 1:
        raise UserError(f"{name} holds {pages} images, expected one; split it into files of one image.")
    if image.format == "PNG":
        return 16 if head[24] == 16 else 8
    if image.format == "PPM" and isinstance(image, ImageFile.ImageFile):
        args = image.tile[0].args
        if image.mode == "I" or (isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255):
            raise UserError(f"{name} is a PPM of more than 8 bits, expected 8; convert it to PNG or TIFF.")
    return _tiff_depth(image.tag_v2, name) if isinstance(image, TiffImagePlugin.TiffImageFile) else 8


def _tiff_depth(tags: Any, name: str) -> int:
    bits: set[int] = set(tags.get(258, (1,)))
    kinds: set[int] = set(tags.get(339, (1,)))
    if kinds != {1}:
        kind = "floating-point" if 3 in kinds else "signed"
        raise UserError(f"{name} holds {kind} samples, expected unsigned ones of 8 or 16 bits; convert it first.")
    if not bits <= {1, 2, 4, 8} and bits != {16}:
        raise UserError(f"{name} holds samples of {max(bits)} bits, expected 8 or 16; convert it first.")
    odd = tags.get(262) not in (0, 1, 2) or tags.get(284, 1) != 1 or 1 in tags.get(338, ())
    if bits == {16} and odd:
        raise UserError(
            f"{name} stores 16 bits in a way that is not read (expected grey or RGB, the samples of a pixel together, "
            "no premultiplied alpha); convert it to a 16-bit PNG."
        )
    return max(8, *bits)


def _pages(image: Image.Image) -> int:
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


def _decode8(image: Image.Image) -> tuple[Pixels, Pixels | None, bytes]:
    icc = bytes(image.info.get("icc_profile") or b"")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "CMYK":
        image, icc = _cmyk_to_srgb(image, icc), b""
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    decoded = _with_channels(np.asarray(image if image.mode == mode else image.convert(mode)))
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


def _decode16(image: Image.Image, source: Path | bytes, head: bytes) -> tuple[Pixels, Pixels | None, bytes]:
    import cv2

    encoded = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.fromfile(source, np.uint8)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("its 16-bit samples cannot be decoded")
    decoded = _with_channels(decoded)
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


def _with_channels(decoded: Pixels) -> Pixels:
    return decoded.reshape(*decoded.shape[:2], -1)


def _write8(file: IO[bytes], samples: Pixels, suffix: str, decoded: DecodedImage) -> None:
    """Write 8 bits through Pillow, which keeps profile and EXIF where the format can."""
    if samples.dtype == np.uint16:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    metadata = {key: value for key, value in (("icc_profile", decoded.icc), ("exif", decoded.exif)) if value}
    image.save(file, **SAVE[suffix], **metadata)  # type: ignore[arg-type] # mypy sees no **params


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__

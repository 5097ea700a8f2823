"""Reading and writing image files: one reader and one writer for every format.

Pixel values are taken as the file stores them: gamma chunks are ignored, colour profiles are not applied but written
back.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from denoise.errors import UserError, first_line
from denoise.files import atomic_file
from denoise.images.decoders import decode8, decode16, sample_bits, with_channel_axis
from denoise.images.encoders import write_png16, write_tiff
from denoise.images.exif import orientation_and_exif, turn_upright
from denoise.images.tensors import Pixels
from denoise.images.tiff import MAGIC as TIFF_MAGIC
from denoise.images.tiff import inspect_tiff

warnings.filterwarnings("ignore", module=r"PIL\.")  # harmless, or an error that is told here
READABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm")
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "lossless": True, "exact": True},
    ".bmp": {"format": "BMP"},
    ".jpg": JPEG,
    ".jpeg": JPEG,
}
TIFF = (".tif", ".tiff")
WRITABLE = (*SAVE_OPTIONS, *TIFF)
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")  # never EPS and the like, which run programs
OTHERS = {  # what is not read, told by its first bytes: position, bytes
    "JPEG 2000": (0, b"\0\0\0\x0cjP  "),
    "a JPEG 2000 codestream": (0, b"\xff\x4f\xff\x51"),
    "JPEG XL": (0, b"\0\0\0\x0cJXL "),
    "a JPEG XL codestream": (0, b"\xff\x0a"),
    "HEIF, AVIF or video": (4, b"ftyp"),
    "floating-point samples (PFM)": (0, b"PF"),
    "floating-point samples (OpenEXR)": (0, b"\x76\x2f\x31\x01"),
    "floating-point samples (Radiance HDR)": (0, b"#?RADIANCE"),
    "a PAM": (0, b"P7"),
    "FITS data": (0, b"SIMPLE  ="),
    "a Photoshop document": (0, b"8BPS"),
    "a pointer of Git LFS, not the file itself": (0, b"version https://git-l"),
}
HEAD = 32  # bytes of a file
MAX_PIXELS = 2**30  # OpenCV's own limit
MAX_BYTES = 8 * MAX_PIXELS  # of a file: 16-bit RGB with alpha
MAX_SIDE16 = 10**6  # libpng's limit in OpenCV
TOO_LONG = "expected sides of at most 1,000,000 pixels; cut it, or convert it to 8 bits"
SMALL = 2**25  # values, of any image that is decoded without doubt
MAX_RATIO = 10000  # values from a byte of a file: deflate of a plain area of single bits reaches 8256, LZW 2730
MAX_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}  # libjpeg, WebP
NO_ALPHA = (".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded, upright image and the metadata that is written back with it.

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

    Palette, 1-bit, YCbCr and CMYK images become grey or RGB. A TIFF's thumbnails and the previews in a camera's MPO are
    passed over; otherwise a file is read whole, or refused rather than cut to what is known of it.

    Raises:
        UserError: there is no such file, it does not decode, or it does not hold exactly one 8 or 16-bit image, grey
            or RGB.
    """
    with _open_image(source) as (image, bits, page, file):
        size = file.seek(0, io.SEEK_END)
        _check_plausible(image, size)
        image.load()  # at 16 bits too: Pillow's errors name the defect, OpenCV's do not
        orientation, exif = orientation_and_exif(image)
        head = _read(file, HEAD)
        if bits == 16:
            pixels, alpha, icc = decode16(image, np.frombuffer(_read(file, size), np.uint8), head, page)
        else:
            pixels, alpha, icc = decode8(image, head)
        upright_alpha = turn_upright(alpha, orientation) if alpha is not None else None
        return DecodedImage(turn_upright(pixels, orientation), upright_alpha, icc, exif)


def decode_quickly(data: bytes, channels: int) -> Pixels | None:
    """Decode an upright 8-bit JPEG or PNG to (H, W, C) with OpenCV, which takes half of Pillow's time for a JPEG.

    It reports no error on broken bytes, so they must be known to be intact. Returns None for a format that OpenCV does
    not know.
    """
    import cv2

    kind = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), kind)
    return None if decoded is None else with_channel_axis(decoded)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright image, from the head of its file only: the size that it will be read in.

    Raises:
        UserError: as ``read_image``, as far as the head of the file shows it.
    """
    with _open_image(path) as (image, _, _, _):
        width, height = image.size
        orientation = 1 if image.format == "TIFF" else orientation_and_exif(image)[0]  # a TIFF's size is upright
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
    try:
        with atomic_file(path) as work, work.open("w+b") as file:
            if suffix in TIFF:
                write_tiff(file, samples, image.icc, image.exif)
            elif suffix == ".png" and samples.dtype == np.uint16:
                write_png16(file, samples, image.icc, image.exif)
            else:
                _write8(file, samples, suffix, image)
    except Exception as error:  # beyond a format's limits, or by broken metadata: encoders raise nearly anything
        raise UserError(f"cannot write {path}: {_reason(error)}.") from error


def check_target(path: Path, image: DecodedImage | None = None) -> None:
    """Raise UserError if this program cannot write that file format, or if the format cannot hold ``image``."""
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise UserError(f"cannot write {path}: its extension is none of {', '.join(WRITABLE)}; choose one of these.")
    if image is None:
        return
    if image.alpha is not None and suffix in NO_ALPHA:
        raise UserError(f"cannot write {path}: {suffix} has no transparency, the image has; choose .png or .tif.")
    limit = MAX_SIDE.get(suffix)
    height, width = image.pixels.shape[:2]
    if limit and max(height, width) > limit:
        raise UserError(
            f"cannot write {path}: {suffix} holds at most {limit} pixels a side, the image is {width}x{height}; "
            "choose .png or .tif."
        )


@contextmanager
def _open_image(source: Path | bytes) -> Iterator[tuple[Image.Image, int, int, IO[bytes]]]:
    """Open an image; hand out it, the bits of its samples (8, 16), the page of a TIFF that it is, and its file.

    Errors that occur while it is open become a UserError that names it.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    Image.MAX_IMAGE_PIXELS = None  # Pillow takes large images for decompression bombs; these are the user's own
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            if file.seek(0, io.SEEK_END) > MAX_BYTES:
                raise ValueError(f"it has {file.tell()} bytes, more than an image of 2^30 pixels")
            head = _read(file, HEAD)
            is_tiff = head[:4] in TIFF_MAGIC
            page, bits = inspect_tiff(file, name) if is_tiff else (0, 0)
            with _identify(file, name) as image:
                image.seek(page)
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width}x{image.height} pixels, more than 2^30")
                bits = bits if is_tiff else sample_bits(image, head, name)
                if bits == 16 and max(image.size) > MAX_SIDE16:
                    raise UserError(f"{name} is {image.width}x{image.height} of 16 bits, {TOO_LONG}.")
                yield image, bits, page, file
    except UserError:
        raise
    except Exception as error:  # broken bytes make decoders raise nearly anything
        raise UserError(f"{name} does not decode as an image: {_reason(error)}.") from error


def _identify(file: IO[bytes], name: str) -> Image.Image:
    """Open an image with Pillow, which finds its format and reads its head."""
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        head = _read(file, HEAD)
        other = next((kind for kind, (start, magic) in OTHERS.items() if head[start:].startswith(magic)), None)
        if other is not None:
            raise UserError(f"{name} holds {other}, which is not read; convert it to PNG or TIFF.") from None
        defect = _defect(file, head) or f"it is none of {', '.join(FORMATS)}, or broken"
        raise UserError(f"{name} does not decode as an image: {defect}.") from None


def _defect(file: IO[bytes], head: bytes) -> str:
    """Return why the reader of the format that a file begins like has refused it; Pillow itself does not tell."""
    for kind in FORMATS:
        factory, accepts = Image.OPEN[kind]
        if accepts is None or accepts(head) is not True:
            continue
        file.seek(0)
        try:
            factory(file, "").close()
        except Exception as error:
            return f"{kind}: {_reason(error)}"
    return ""


def _read(file: IO[bytes], size: int) -> bytes:
    file.seek(0)
    return file.read(size)


def _check_plausible(image: Image.Image, size: int) -> None:
    """Refuse a head that asks for far more memory than a file of ``size`` bytes can fill, before it is set aside."""
    values = image.width * image.height * len(image.getbands()) // (8 if image.mode == "1" else 1)
    if values > SMALL and values > MAX_RATIO * size:
        raise ValueError(f"its head speaks of {image.width}x{image.height} pixels, its {size} bytes cannot hold them")


def _write8(file: IO[bytes], samples: Pixels, suffix: str, decoded: DecodedImage) -> None:
    """Write 8 bits through Pillow, which keeps profile and EXIF where the format can."""
    if samples.dtype == np.uint16:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    metadata = {key: value for key, value in (("icc_profile", decoded.icc), ("exif", decoded.exif)) if value}
    image.save(file, **SAVE_OPTIONS[suffix], **metadata)  # type: ignore[arg-type] # mypy sees no **params


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return first_line(error)

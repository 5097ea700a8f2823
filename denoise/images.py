"""Pictures between files and tensors: one reader and one writer for every format, pad and unpad.

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
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from denoise.encoders import photo_tags, write_png16, write_tiff
from denoise.errors import UserError

Pixels = NDArray[Any]  # (H, W, C) uint8 or uint16, C 1 or 3

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
ORIENTATION = 274


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright, with what is needed to write it back.

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


def read_picture(source: Path | bytes) -> Picture:
    """Decode a picture file, or its bytes, and turn it upright as its EXIF orientation says.

    Palette, 1-bit, YCbCr and CMYK pictures become grey or RGB. Of several pictures in one file (MPO of a camera)
    only the main one is read; other files of several pages are refused rather than cut to their first.

    Raises:
        UserError: there is no such file, it does not decode, or it holds something else than one 8 or 16-bit picture.
    """
    with _opened(source) as (image, name):
        head = _head(source)
        depth = _depth(image, head, name)
        image.load()  # at 16 bits too: it says what is broken, OpenCV only that something is
        orientation, exif = _exif(image)
        pixels, alpha, icc = _decode16(image, source, head) if depth == 16 else _decode8(image)
        upright = _turn(alpha, orientation) if alpha is not None else None
        return Picture(_turn(pixels, orientation), upright, icc, exif)


def decode_quickly(data: bytes, channels: int) -> Pixels | None:
    """Decode an upright 8-bit JPEG or PNG to (H, W, C) with OpenCV, which takes half of Pillow's time for a JPEG.

    It says nothing where bytes are broken, so they must be known to be sound; what it does not understand is None.
    """
    import cv2

    kind = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), kind)
    return None if decoded is None else _with_channels(decoded)


def picture_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright picture, from the head of its file only.

    Raises:
        UserError: as ``read_picture``, as far as the head of the file shows it.
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


def to_tensor(pixels: Pixels) -> Tensor:
    """Turn (H, W, C) uint8 or uint16 into float32 (C, H, W) in [0, 1]."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes).div_(np.iinfo(pixels.dtype).max)


def to_pixels(tensor: Tensor, dtype: Any = np.uint8) -> Pixels:
    """Turn (C, H, W) in [0, 1] into (H, W, C) of ``dtype`` (uint8, uint16): clip, then round to the nearest."""
    scaled = tensor.detach().float().clamp(0, 1).mul_(np.iinfo(dtype).max).round_()
    return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy().astype(dtype))


def as_channels(tensor: Tensor, channels: int) -> Tensor:
    """Turn (..., C, H, W) into ``channels`` channels: grey is repeated, colour becomes the mean of R, G and B."""
    if tensor.shape[-3] == channels:
        return tensor
    if channels == 1:
        return tensor.mean(dim=-3, keepdim=True)
    return tensor.expand(*tensor.shape[:-3], channels, *tensor.shape[-2:])


def pad(batch: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) at the bottom and right, by reflection, to sides that are multiples of ``multiple``.

    Works for any size: where the padding is larger than the picture the reflection goes back and forth, and a side
    of one pixel is repeated.
    """
    for dim in (-2, -1):
        size = batch.shape[dim]
        if size % multiple:
            batch = batch.index_select(dim, _reflection(size, -(-size // multiple) * multiple).to(batch.device))
    return batch


def unpad(batch: Tensor, height: int, width: int) -> Tensor:
    """Cut (..., H', W') back to its first ``height`` rows and ``width`` columns."""
    return batch[..., :height, :width]


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format of the file's extension: all of it or nothing.

    PNG and TIFF hold 8 and 16 bits, WebP (lossless), JPEG (quality 95, no chroma subsampling) and BMP hold 8: 16 bits
    are rounded to 8 for them. PNG, TIFF, JPEG and WebP keep colour profile and EXIF.

    Raises:
        UserError: as ``check_target``, or the file cannot be written.
    """
    check_target(path, picture)
    suffix = path.suffix.lower()
    samples = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            if suffix in TIFF:
                write_tiff(file, samples, picture.icc, picture.exif)
            elif suffix == ".png" and samples.dtype == np.uint16:
                write_png16(file, samples, picture.icc, picture.exif)
            else:
                _write8(file, samples, suffix, picture)
        part.replace(path)
    except (OSError, ValueError, struct.error) as error:  # the last two: metadata or pixels beyond a format's limits
        raise UserError(f"cannot write {path}: {_reason(error)}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def check_target(path: Path, picture: Picture | None = None) -> None:
    """Raise UserError where this program cannot write such a file, or its format cannot hold ``picture``."""
    suffix = path.suffix.lower()
    if suffix not in WRITES:
        raise UserError(f"cannot write {path}: its extension is none of {', '.join(WRITES)}; choose one of these.")
    if picture is None:
        return
    if picture.alpha is not None and suffix in NO_ALPHA:
        raise UserError(f"cannot write {path}: {suffix} has no transparency, the picture has; choose .png or .tif.")
    limit = LONGEST_SIDE.get(suffix)
    height, width = picture.pixels.shape[:2]
    if limit and max(height, width) > limit:
        raise UserError(
            f"cannot write {path}: {suffix} holds at most {limit} pixels a side, the picture is {width}x{height}; "
            "choose .png or .tif."
        )


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[Image.Image, str]]:
    """Open a picture and name it in every error."""
    name = "picture" if isinstance(source, bytes) else str(source)
    Image.MAX_IMAGE_PIXELS = None  # Pillow takes large pictures for decompression bombs; these are the user's own
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"it has {image.width}x{image.height} pixels, more than 2^30")
            yield image, name
    except UserError:
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise UserError(f"{name} does not decode as a picture: it is none of {kinds}, or broken.") from None
    except Exception as error:  # broken bytes make decoders raise nearly anything
        raise UserError(f"{name} does not decode as a picture: {_reason(error)}.") from error


def _head(source: Path | bytes) -> bytes:
    """Return the first bytes of a file; in a PNG 24 is the bit depth and 25 the colour type, which Pillow hides."""
    if isinstance(source, bytes):
        return source[:26]
    with source.open("rb") as file:
        return file.read(26)


def _depth(image: Image.Image, head: bytes, name: str) -> int:
    """Return 8 or 16, the bits of a sample; refuse what is not one picture of such samples."""
    if image.format != "MPO" and (pages := _pages(image)) > 1:
        raise UserError(f"{name} holds {pages} pictures, expected one; split it into files of one picture.")
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
    """Count the pictures in a file, without the thumbnails that a TIFF may carry."""
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
    """Return the orientation that the pixels still need, and the EXIF block of the upright picture.

    A block that cannot be parsed is dropped: its picture is good without it.
    """
    try:
        tags = Image.Image.getexif(image)  # PNG's own getexif would decode the picture first
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


def _write8(file: IO[bytes], samples: Pixels, suffix: str, picture: Picture) -> None:
    """Write 8 bits through Pillow, which keeps profile and EXIF where the format can."""
    if samples.dtype == np.uint16:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    metadata = {key: value for key, value in (("icc_profile", picture.icc), ("exif", picture.exif)) if value}
    image.save(file, **SAVE[suffix], **metadata)  # type: ignore[arg-type] # mypy sees no **params


def _reflection(size: int, padded: int) -> Tensor:
    """Return for each of ``padded`` places which of ``size`` pixels it shows: 0 1 2 1 0 1 2 ..."""
    period = max(2 * (size - 1), 1)
    place = torch.arange(padded) % period
    return torch.minimum(place, period - place) if size > 1 else torch.zeros_like(place)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__

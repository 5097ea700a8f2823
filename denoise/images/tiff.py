"""What a TIFF holds, told from its directories: which page is the image, and how many bits its samples have.

A page may be a reduced copy, a stack may hide behind a single page, and samples have many kinds and numbers. Decoders
cut all of that to what they know without a word, so anything but one grey or RGB image is refused by its name here.
"""

import math
import struct
from itertools import islice
from typing import IO, Any

import numpy as np
from PIL import TiffImagePlugin

from denoise.errors import UserError

MAGIC = (b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b")  # classic and BigTIFF, in both byte orders
MAX_PAGES = 100  # that are counted
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # channels of (inverted) grey, RGB, palette, CMYK, YCbCr
WITH_ALPHA = (1, 2, 3)
ALPHA = ((1,), (2,), (999,))  # values of ExtraSamples: premultiplied, plain, Corel's
SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
UNCOMPRESSED = 1
OPENCV = (UNCOMPRESSED, 5, 8, 32773, 32946)  # that it decodes: also LZW, deflate (two numbers), PackBits
SPLIT = "expected one; split it into files of one image"
CONVERT = "convert it to a TIFF or PNG of 8 or 16 bits, grey or RGB"


def inspect_tiff(file: IO[bytes], name: str) -> tuple[int, int]:
    """Return the number of the page that is the image, and 8 or 16, the bits of its samples.

    Raises:
        UserError: the file does not hold exactly one image, or one of another kind.
        Exception: nearly any, from directories that are broken.
    """
    import tifffile

    tifffile.logger().setLevel("CRITICAL")  # what it finds wrong is told by us
    file.seek(0)
    with tifffile.TiffFile(file, is_lsm=False, is_ndpi=False, is_scanimage=False) as tiff:
        page = _only_image(tiff, name)
        _refuse_stack(page, name)
        bits = _sample_bits(page, name)
        _refuse_channels(page, bits, name)
        _refuse_coding(page, bits, name)
        return int(page.index), bits


def _only_image(tiff: Any, name: str) -> Any:
    """Return the one page of the main chain that is no reduced copy."""
    seen: set[int] = set()
    full: list[Any] = []  # pages and sub-IFDs in full resolution
    main = 0  # of these, how many are in the main chain
    for page in tiff.pages:
        _check_directory(tiff, page, seen)
        inner = list(islice(page.pages, MAX_PAGES)) if page.subifds else []
        for directory in inner:
            _check_directory(tiff, directory, seen)
        main += not page.is_reduced
        full += [directory for directory in (page, *inner) if not directory.is_reduced]
        if len(seen) > MAX_PAGES:
            raise UserError(f"{name} holds more than {MAX_PAGES} images, {SPLIT}.")
    if not seen:
        raise ValueError("it has no directory")
    if _has_next(tiff, page):
        raise ValueError("it names a further page that the file does not hold")
    if len(full) > 1:
        raise UserError(f"{name} holds {len(full)} images, {SPLIT}.")
    if not full:
        raise UserError(f"{name} holds only reduced copies of an image (thumbnails), not the image; {CONVERT}.")
    if not main:
        raise UserError(
            f"{name} holds a thumbnail, and its image in a sub-directory, as raw files of cameras (DNG) do; {CONVERT}."
        )
    return full[0]


def _check_directory(tiff: Any, page: Any, seen: set[int]) -> None:
    """Refuse directories that form a circle, and one whose values would fill more memory than the file has bytes."""
    if page.offset in seen:
        raise ValueError("its directories point at one another")
    seen.add(page.offset)
    if sum(tag.valuebytecount for tag in page.tags) > tiff.filehandle.size:
        raise ValueError("the values of its directory are larger than the file")


def _has_next(tiff: Any, page: Any) -> bool:
    """Return whether a directory says that another one follows."""
    layout, file = tiff.tiff, tiff.filehandle
    file.seek(page.offset)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(page.offset + layout.tagnosize + tags * layout.tagsize)
    (offset,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    return bool(offset)


def _refuse_stack(page: Any, name: str) -> None:
    """Refuse what stores further planes behind the data of its only page: ImageJ, tifffile, MetaMorph, volumes."""
    from tifffile.tifffile import imagej_description_metadata, shaped_description_metadata

    planes = page.imagedepth
    if page.imagej_description is not None:
        planes = imagej_description_metadata(page.imagej_description).get("images", 1)
    elif page.shaped_description is not None:
        shape = shaped_description_metadata(page.shaped_description).get("shape", ())
        several, rest = divmod(math.prod(shape), page.imagewidth * page.imagelength * page.samplesperpixel)
        planes = several if not rest else 1  # else the description is older than the image
    elif page.is_stk and 33629 in page.tags:
        planes = page.tags[33629].count  # UIC2tag has an entry for each plane
    if planes > 1:
        raise UserError(f"{name} holds a stack of {planes} images, {SPLIT}.")


def _sample_bits(page: Any, name: str) -> int:
    formats, bits = set(_values(page, 339, 1)), set(_values(page, 258, 1))
    if formats != {1}:
        kinds = " and ".join(sorted({SAMPLE_FORMATS.get(kind, "undefined") for kind in formats - {1}}))
        raise UserError(f"{name} holds {kinds} samples, expected unsigned ones of 8 or 16 bits; convert it first.")
    several = page.samplesperpixel > 1
    if len(bits) > 1 or not bits <= ({8, 16} if several else {1, 2, 4, 8, 16}):
        sizes = " and ".join(str(size) for size in sorted(bits))
        raise UserError(f"{name} holds samples of {sizes} bits, expected 8 or 16; convert it first.")
    return 16 if bits == {16} else 8


def _refuse_channels(page: Any, bits: int, name: str) -> None:
    colour, channels = int(page.photometric), page.samplesperpixel
    if colour not in COLOURS:
        raise UserError(f"{name} holds {_word(page.photometric)} values, expected grey or RGB; {CONVERT}.")
    extra = _values(page, 338, ())
    no_alpha = channels == COLOURS[colour]
    alpha = colour in WITH_ALPHA and channels == COLOURS[colour] + 1 and (extra in ALPHA or (colour == 2 and not extra))
    if not (no_alpha or alpha or (colour == 6 and channels == 1)):
        raise UserError(
            f"{name} holds {channels} channels ({_word(page.photometric)}), expected grey or RGB, with or without "
            "transparency; split it into images of one channel."
        )
    apart, grey_alpha = int(page.planarconfig) != 1, alpha and colour != 2
    if apart and grey_alpha:
        raise UserError(f"{name} stores grey and transparency in planes apart, which is not supported; {CONVERT}.")
    if bits == 16 and (colour > 2 or apart or 1 in extra or grey_alpha):
        raise UserError(
            f"{name} stores 16 bits in a way that is not supported (expected grey or RGB, the samples of a pixel "
            "together, no premultiplied alpha); convert it to a 16-bit PNG."
        )


def _refuse_coding(page: Any, bits: int, name: str) -> None:
    """Refuse what the decoders would decode wrongly or not at all, although the file is sound."""
    if int(page.compression) not in (OPENCV if bits == 16 else TiffImagePlugin.COMPRESSION_INFO):
        raise UserError(f"{name} is compressed with {_word(page.compression)}, which is not supported; {CONVERT}.")
    if np.size(page.dataoffsets) < math.prod(page.chunked):
        raise ValueError("its strips or tiles do not cover it")
    if int(page.photometric) == 6 and int(page.compression) == UNCOMPRESSED and _values(page, 530, (2, 2)) != (1, 1):
        raise UserError(f"{name} holds uncompressed YCbCr of reduced colour resolution; {CONVERT}.")
    colours = _values(page, 320, ()) if int(page.photometric) == 3 else ()
    if any(value % 257 for value in colours) and any(value % 256 for value in colours):
        raise UserError(f"{name} holds a palette of 16-bit colours, which 8 bits would cut; {CONVERT}.")


def _values(page: Any, tag: int, default: Any) -> tuple[Any, ...]:
    value = page.tags.valueof(tag, default)
    return tuple(np.ravel(value).tolist())


def _word(value: Any) -> str:
    """Return the name of a value that tifffile knows, or its number."""
    return str(getattr(value, "name", value))

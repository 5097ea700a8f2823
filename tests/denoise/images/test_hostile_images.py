"""Damaged and hostile files: one sentence each, quickly, and no more memory than their bytes can fill."""

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from denoise.errors import UserError
from denoise.images.io import image_size, read_image, write_image
from tests.denoise.images.test_io import saved

MEMORY = 3 << 30  # bytes of addresses; importing the libraries takes a third


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def directory(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A TIFF of one directory: (tag, type, count, value) each."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following)


GREY = [(256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 9)]
SIZED = [*GREY, (279, 4, 1, 81)]


def samples() -> dict[str, bytes]:
    """A small file of every format."""
    pixels = np.cumsum(np.random.default_rng(0).integers(0, 9, (24, 30, 3)), axis=1).astype(np.uint8)
    image, other = Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())
    exif = Image.Exif()
    exif[274], exif[272] = 6, "A camera"
    pages = io.BytesIO()
    with tifffile.TiffWriter(pages, bigtiff=True) as writer:
        writer.write(pixels[::4, ::4], photometric="rgb", subfiletype=1)
        writer.write(pixels, photometric="rgb", subifds=1)
        writer.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
    deep = io.BytesIO()
    tifffile.imwrite(deep, pixels.astype(np.uint16) * 257, photometric="rgb", compression="zlib")
    return {
        "png": saved(image, "PNG", exif=exif),
        "palette": saved(image.quantize(9), "PNG", transparency=3),
        "jpeg": saved(image, "JPEG", exif=exif),
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "mpo": saved(image, "MPO", save_all=True, append_images=[other.resize((9, 9))]),
        "webp": saved(image, "WEBP", lossless=True),
        "bmp": saved(image, "BMP"),
        "gif": saved(image, "GIF", save_all=True, append_images=[other]),
        "ppm": saved(image, "PPM"),
        "pbm": saved(image.convert("1"), "PPM"),
        "plain": b"P3 2 2 255\n" + b"1 2 3 " * 4,
        "pfm": b"Pf\n3 3\n-1.0\n" + bytes(36),
        "lzw": saved(image, "TIFF", compression="tiff_lzw", exif=exif),
        "fax": saved(image.convert("1"), "TIFF", compression="group4"),
        "colours": saved(image.quantize(9), "TIFF"),
        "pages": pages.getvalue(),
        "deep": deep.getvalue(),
    }


SAMPLES = samples()
FLIPS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SAMPLES)
@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.one_of(st.just(1.0), st.floats(0, 1)), flips=FLIPS)
def test_damaged_bytes_give_an_image_or_one_sentence(
    tmp_path: Path, kind: str, share: float, flips: list[tuple[int, int]]
) -> None:
    damaged = bytearray(SAMPLES[kind])
    for position, value in flips:
        damaged[position % min(len(damaged), 400 if position % 3 else 2**16)] = value
    del damaged[int(share * len(damaged)) :]
    path = tmp_path / "a"
    path.write_bytes(damaged)
    try:
        image = read_image(bytes(damaged))
    except UserError:
        with pytest.raises(UserError, match="/a "):
            read_image(path)
        return
    assert image_size(path) == image.pixels.shape[:2]
    assert (image.pixels.dtype, image.pixels.shape[2]) in {(np.dtype(t), c) for t in ("u1", "u2") for c in (1, 3)}
    for suffix in (".png", ".tif"):  # whatever metadata came with it
        write_image(tmp_path / f"b{suffix}", image)


def photographed() -> bytes:
    """The EXIF block of a photograph, with directories of the camera and of the place."""
    exif = Image.Exif()
    exif.update({271: "A maker", 272: "A camera", 282: 72.0, 283: 72.0, 296: 2})
    exif.get_ifd(0x8769).update({0x9003: "2024:05:06 07:08:09", 0x829A: 0.004})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.5)})
    return exif.tobytes()


EXIF = photographed()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(6, len(EXIF) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_an_image_with_damaged_exif_is_read_and_written(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    block = bytearray(EXIF)
    for position, value in flips:
        block[position] = value
    image = read_image(saved(Image.new("RGB", (5, 4)), "JPEG", exif=bytes(block)))
    for suffix in (".png", ".tif"):
        write_image(tmp_path / f"a{suffix}", image)
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").pixels, image.pixels)


def with_huge_text(kind: bytes) -> bytes:
    body = b"a\0\0" + zlib.compress(bytes(50_000_000), 1)
    return png_of(4, 1, chunk(kind, body), chunk(b"IDAT", zlib.compress(bytes(13))))


HOSTILE = {
    "a head that lies": lambda: png_of(32768, 32768, chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "a head without pixels": lambda: png_of(20000, 20000),
    "more than a gigapixel": lambda: png_of(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "a compressed text": lambda: with_huge_text(b"zTXt"),
    "a compressed profile": lambda: with_huge_text(b"iCCP"),
    "a JPEG of the largest size": lambda: SAMPLES["jpeg"].replace(
        struct.pack(">BHH", 8, 24, 30), struct.pack(">BHH", 8, 65500, 65500)
    ),
    "a PPM of the largest size": lambda: b"P6 32000 32000 255\n" + bytes(100),
    "a PPM of a long number": lambda: b"P6 " + b"9" * 5_000_000,
    "a TIFF of the largest size": lambda: directory((256, 4, 1, 30000), (257, 4, 1, 30000), *SIZED[2:]),
    "a TIFF that points at itself": lambda: directory(*SIZED, following=8),
    "a TIFF with a missing page": lambda: directory(*SIZED, following=99999),
    "a TIFF whose strips are too few": lambda: directory((256, 4, 1, 9), (257, 4, 1, 9999), *SIZED[2:]) + bytes(99),
    "a TIFF of no directory": lambda: b"II*\0\0\0\0\0",
    "a TIFF of a count that lies": lambda: directory(*GREY[:4], (273, 4, 2**31, 8), *GREY[5:], (279, 4, 2**31, 8)),
    "a TIFF of overlapping values": lambda: directory(*SIZED, *((65000 + n, 1, 900_000, 8) for n in range(500)))
    + bytes(1_000_000),
    "a TIFF of nested JSON": lambda: directory(
        *SIZED[:4], (270, 2, 200_010, 200), *SIZED[4:]
    ).ljust(200, b"\0") + b'{"shape": ' + b"[" * 200_000,
}  # fmt: skip


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


READ = """
import sys, time
from pathlib import Path
from denoise.errors import UserError
from denoise.images.io import read_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        read_image(path)
        print(path.name, "was read")
    except UserError as error:
        print(path.name, "in time" if time.process_time() - start < 3 else "late", str(error)[:200])
"""


def test_hostile_files_take_little_time_and_memory(tmp_path: Path) -> None:
    names = sorted(HOSTILE)
    for number, name in enumerate(names):
        (tmp_path / f"{number:02}").write_bytes(HOSTILE[name]())
    result = subprocess.run(
        [sys.executable, "-c", READ, tmp_path], capture_output=True, text=True, timeout=60, preexec_fn=limit_memory
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    outcomes = dict(zip(names, lines, strict=True))
    assert [name for name in names if " in time " not in outcomes[name]] == [], outcomes
    assert [name for name in names if str(tmp_path) not in outcomes[name]] == []

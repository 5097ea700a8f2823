"""Sound files that hold something else than one image of 8 or 16 bits: read whole, or refused by what they hold."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from denoise.errors import UserError
from denoise.images.io import DecodedImage, image_size, read_image
from tests.denoise.images.test_io import png, saved

RGB, GREY = {"photometric": "rgb"}, {"photometric": "minisblack"}
THUMBNAIL = {"photometric": "rgb", "subfiletype": 1}
OLD_THUMBNAIL = {"photometric": "rgb", "extratags": [(255, 3, 1, 2, True)]}  # SubfileType, as before TIFF 5.0
UPRIGHT = {"photometric": "rgb", "extratags": [(274, 3, 1, 6, True)]}
IMAGEJ = "ImageJ=1.53t\nimages=5\nslices=5\nhyperstack=true\n"


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 52, 3)).astype(np.uint8)


def tiff(*pages: tuple[np.ndarray, dict[str, Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as writer:
        for page, how in pages:
            writer.write(page, **how)
    return file.getvalue()


def check_refused(data: bytes, words: str, tmp_path: Path) -> None:
    """The file is refused in one sentence that does not call it broken, by its bytes, its path and its size alone."""
    path = tmp_path / "a"
    path.write_bytes(data)
    for read, source in ((read_image, data), (read_image, path), (image_size, path)):
        with pytest.raises(UserError, match=words) as caught:
            read(source)
        assert "broken" not in str(caught.value)
        assert "does not decode" not in str(caught.value)


# Pages


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("thumbnail", [THUMBNAIL, OLD_THUMBNAIL])
@pytest.mark.parametrize("large", [False, True])
def test_a_thumbnail_in_front_is_passed_over(
    rgb: np.ndarray, tmp_path: Path, deep: bool, thumbnail: dict[str, Any], large: bool
) -> None:
    pixels = rgb.astype(np.uint16) * 251 if deep else rgb
    for small in (pixels[::4, ::4], rgb[::4, ::4]):
        (tmp_path / "a.tif").write_bytes(tiff((small, thumbnail), (pixels, RGB), bigtiff=large))
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, pixels)
        assert image_size(tmp_path / "a.tif") == (40, 52)


@pytest.mark.parametrize("deep", [False, True])
def test_the_page_that_is_read_is_turned_upright_not_the_thumbnail(rgb: np.ndarray, tmp_path: Path, deep: bool) -> None:
    pixels = rgb.astype(np.uint16) * 251 if deep else rgb
    (tmp_path / "a.tif").write_bytes(tiff((pixels[::4, ::4], THUMBNAIL), (pixels, UPRIGHT)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, np.rot90(pixels, -1))
    assert image_size(tmp_path / "a.tif") == (52, 40)


def test_a_pyramid_is_its_largest_image(rgb: np.ndarray) -> None:
    levels = [(rgb, RGB | {"subifds": 2}), (rgb[::2, ::2], THUMBNAIL), (rgb[::4, ::4], THUMBNAIL)]
    np.testing.assert_array_equal(read_image(tiff(*levels)).pixels, rgb)


def test_other_pages_and_sub_directories_are_refused(rgb: np.ndarray, tmp_path: Path) -> None:
    small = rgb[::4, ::4]
    for pages, words in [
        ([(small, THUMBNAIL | {"subifds": 1}), (rgb, RGB | {"subfiletype": 0})], "sub-directory"),  # as a DNG
        ([(rgb, RGB | {"subifds": 1}), (small, RGB)], "holds 2 images"),
        ([(small, THUMBNAIL)], "only reduced copies"),
        ([(rgb, RGB), (rgb, RGB), (small, THUMBNAIL)], "holds 2 images"),
        ([(small, RGB)] * 120, "more than 100 images"),
        ([(np.stack([rgb[..., 0]] * 5), GREY)], "holds 5 images"),
        ([(np.stack([rgb[..., 0]] * 16), GREY | {"volumetric": True, "tile": (16, 16, 16)})], "stack of 16"),
    ]:
        check_refused(tiff(*pages), words, tmp_path)


def test_a_stack_behind_one_page_is_refused(rgb: np.ndarray, tmp_path: Path) -> None:
    grey = rgb[..., 0]
    check_refused(tiff((grey, GREY | {"description": IMAGEJ, "metadata": None})), "stack of 5", tmp_path)
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack([grey] * 5), truncate=True, **GREY)
    check_refused(file.getvalue(), "stack of 5", tmp_path)
    file = io.BytesIO()
    tifffile.imwrite(file, grey, imagej=True)
    np.testing.assert_array_equal(read_image(file.getvalue()).pixels[..., 0], grey)


# Samples of TIFFs


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        *((kind, "floating-point") for kind in ("f2", "f4", "f8")),
        *((kind, "signed") for kind in ("i1", "i2", "i4")),
        *((kind, "complex") for kind in ("c8", "c16")),
        ("u4", "32 bits"),
        ("u8", "64 bits"),
    ],
)
def test_samples_of_other_kinds_are_named(rgb: np.ndarray, tmp_path: Path, kind: str, words: str) -> None:
    check_refused(tiff((rgb[..., 0].astype(kind), GREY)), words, tmp_path)
    check_refused(tiff((rgb.astype(kind), RGB)), words, tmp_path)


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize(
    ("count", "colour", "extra"), [(2, GREY, 1), (3, GREY, 2), (5, GREY, 4), (4, RGB, 1), (5, RGB, 2)]
)
def test_further_channels_are_named(
    tmp_path: Path, kind: str, planes: str, count: int, colour: dict[str, str], extra: int
) -> None:
    channels = np.random.default_rng(0).integers(0, 256, (40, 52, count)).astype(kind)
    if planes == "separate":
        channels = np.ascontiguousarray(channels.transpose(2, 0, 1))
    options = colour | {"planarconfig": planes, "extrasamples": ["unspecified"] * extra}
    check_refused(tiff((channels, options)), f"{count} channels", tmp_path)


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("photometric", ["cielab", "icclab", "cfa", "logl", "depth_map"])
def test_other_colours_are_named(rgb: np.ndarray, tmp_path: Path, kind: str, photometric: str) -> None:
    pixels = rgb if "lab" in photometric else rgb[..., 0]
    check_refused(tiff((pixels.astype(kind), {"photometric": photometric})), photometric.upper(), tmp_path)


def test_cmyk_palettes_and_codings(rgb: np.ndarray, tmp_path: Path) -> None:
    grey, inks = rgb[..., 0], np.dstack([rgb, rgb[..., :1]])
    steps = np.arange(768).reshape(3, 256) % 256
    assert read_image(tiff((inks, {"photometric": "separated"}))).pixels.shape == rgb.shape
    for scale in (256, 257):
        palette = {"photometric": "palette", "colormap": (steps * scale).astype(np.uint16)}
        np.testing.assert_array_equal(read_image(tiff((grey, palette))).pixels, np.dstack([grey] * 3))
    palette = {"photometric": "palette", "colormap": (steps * 255 + 7).astype(np.uint16)}
    check_refused(tiff((grey, palette)), "palette of 16-bit colours", tmp_path)
    more = {"photometric": "separated", "extrasamples": ["unspecified"]}
    check_refused(tiff((np.dstack([inks, grey]), more)), "5 channels", tmp_path)
    check_refused(tiff((grey.astype(np.uint16), GREY | {"compression": "lzma"})), "LZMA", tmp_path)
    raw = saved(Image.fromarray(rgb).convert("YCbCr"), "TIFF", tiffinfo={530: (2, 2)})
    check_refused(raw, "reduced colour resolution", tmp_path)


def test_planes_apart_are_read(rgb: np.ndarray) -> None:
    for how in ({}, {"compression": "zlib"}):
        planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
        np.testing.assert_array_equal(read_image(tiff((planes, RGB | {"planarconfig": "separate"} | how))).pixels, rgb)


# Other formats


def test_animations_and_pairs_of_images_are_refused(rgb: np.ndarray, tmp_path: Path) -> None:
    first, second = Image.fromarray(rgb), Image.fromarray(rgb[::-1].copy())
    for format in ("PNG", "GIF", "WEBP", "MPO"):
        check_refused(saved(first, format, save_all=True, append_images=[second]), "holds 2 images", tmp_path)
    check_refused(saved(first.resize((26, 20)), "MPO", save_all=True, append_images=[second]), "2 images", tmp_path)
    preview = saved(first, "MPO", save_all=True, append_images=[second.resize((26, 20))])
    assert read_image(preview).pixels.shape == rgb.shape


def test_several_portable_maps_in_a_file_are_refused(rgb: np.ndarray, tmp_path: Path) -> None:
    size = b" %d %d" % rgb.shape[1::-1]
    for one in (
        b"P6" + size + b" 255\n" + rgb.tobytes(),
        b"P5" + size + b" 100\n" + (rgb[..., 0] % 101).tobytes(),
        b"P4" + size + b"\n" + bytes(7 * 40),
    ):
        assert read_image(one + b"\n").pixels.shape[:2] == rgb.shape[:2]
        check_refused(one + one, "several images", tmp_path)


def test_floats_and_deep_samples_are_refused_in_every_container(rgb: np.ndarray, tmp_path: Path) -> None:
    size = b"\n%d %d\n" % rgb.shape[1::-1]
    floats = rgb.astype("<f4") * 3 - 100
    check_refused(b"Pf" + size + b"-1.0\n" + floats[..., 0].tobytes(), "floating-point", tmp_path)
    check_refused(b"PF" + size + b"-1.0\n" + floats.tobytes(), "floating-point", tmp_path)
    for depth in (256, 4095, 65535):
        check_refused(b"P5" + size + b"%d\n" % depth + rgb[..., 0].astype(">u2").tobytes(), "more than 8", tmp_path)
    check_refused(b"P2 2 2 1000\n1 2 3 4\n", "more than 8", tmp_path)


def test_formats_that_are_not_read_are_named(rgb: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(rgb)
    check_refused(saved(image, "JPEG2000"), "JPEG 2000", tmp_path)
    check_refused(saved(image, "JPEG2000", no_jp2=True), "JPEG 2000", tmp_path)
    check_refused(saved(image, "AVIF"), "AVIF", tmp_path)
    check_refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS", tmp_path)


def test_a_jpeg_of_12_bits_is_named(rgb: np.ndarray) -> None:
    data = saved(Image.fromarray(rgb), "JPEG")
    head = data.index(b"\xff\xc0") + 4
    with pytest.raises(UserError, match="JPEG: cannot handle 12-bit") as caught:
        read_image(data[:head] + b"\x0c" + data[head + 1 :])
    assert "broken" not in str(caught.value)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_value_of_every_depth(depth: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**depth, (40, 56))
    key = int(values[3, 4])
    image = read_image(png(_packed(values, depth), depth, 0, (b"tRNS", key.to_bytes(2)), width=56))
    most = 65535 if depth == 16 else 255
    np.testing.assert_array_equal(image.pixels[..., 0], values * (most // (2**depth - 1)))
    np.testing.assert_array_equal(image.alpha, np.where(values == key, 0, most))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour(photo: DecodedImage, deep: np.ndarray, depth: int) -> None:
    pixels = photo.pixels if depth == 8 else deep
    key = pixels[70, 90]
    image = read_image(png(pixels, depth, 2, (b"tRNS", b"".join(int(value).to_bytes(2) for value in key))))
    np.testing.assert_array_equal(image.pixels, pixels)
    np.testing.assert_array_equal(image.alpha == 0, (pixels == key).all(2))


def _packed(values: np.ndarray, depth: int) -> np.ndarray:
    """The rows of a PNG whose samples are smaller than a byte."""
    if depth >= 8:
        return values
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)

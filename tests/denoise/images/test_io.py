"""Images between files and tensors, with real photographs."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from denoise.errors import UserError
from denoise.images.io import DecodedImage, image_size, pixel_hash, read_image, write_image
from denoise.images.tensors import as_channels, pad, to_pixels, to_tensor, unpad

LOSSLESS = (".png", ".tif", ".tiff", ".webp", ".bmp")


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(rows: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes], width: int | None = None) -> bytes:
    """A PNG with chunks that Pillow and OpenCV would not write; ``width`` where the rows are packed."""
    height, width = len(rows), width or rows.shape[1]
    packed = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# Round trips


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_8_bits_come_back_exactly(
    photo: DecodedImage, tmp_path: Path, suffix: str, channels: int, transparent: bool
) -> None:
    pixels = photo.pixels[..., :channels]
    alpha = photo.pixels[..., 1] if transparent else None
    path = tmp_path / f"a{suffix}"
    if transparent and suffix == ".bmp":
        with pytest.raises(UserError, match="transparency"):
            write_image(path, DecodedImage(pixels, alpha))
        assert not list(tmp_path.iterdir())
        return
    write_image(path, DecodedImage(pixels, alpha))
    back = read_image(path)
    expected = np.repeat(pixels, 3, axis=2) if suffix == ".webp" and channels == 1 else pixels  # WebP has no grey
    assert back.pixels.dtype == np.uint8
    np.testing.assert_array_equal(back.pixels, expected)
    assert (back.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(back.alpha, alpha)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_16_bits_come_back_exactly(
    photo: DecodedImage, deep: np.ndarray, tmp_path: Path, suffix: str, channels: int, transparent: bool
) -> None:
    pixels, alpha = deep[..., :channels], deep[..., 1] if transparent else None
    path = tmp_path / f"a{suffix}"
    write_image(path, DecodedImage(pixels, alpha, icc=photo.icc))
    back = read_image(path)
    expected = np.repeat(pixels, 3, axis=2) if suffix == ".tif" and channels == 1 and transparent else pixels
    assert back.pixels.dtype == np.uint16
    np.testing.assert_array_equal(back.pixels, expected)
    assert (back.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(back.alpha, alpha)
    assert back.icc == photo.icc


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_another_program_reads_the_same_16_bits(deep: np.ndarray, tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", DecodedImage(deep))
    other = cv2.imread(str(tmp_path / f"a{suffix}"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(other[..., ::-1], deep)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_another_program_wrote_the_same_16_bits(deep: np.ndarray, tmp_path: Path, suffix: str) -> None:
    cv2.imwrite(str(tmp_path / f"a{suffix}"), deep[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").pixels, deep)


def test_more_rows_than_are_compressed_at_a_time(photographs: Path, tmp_path: Path) -> None:
    pixels = read_image(photographs / "astronaut.png").pixels.astype(np.uint16) * 257
    for suffix in (".png", ".tif"):
        write_image(tmp_path / f"a{suffix}", DecodedImage(pixels))
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").pixels, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
def test_16_bits_are_rounded_to_8_where_a_format_holds_no_more(deep: np.ndarray, tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", DecodedImage(deep))
    back = read_image(tmp_path / f"a{suffix}").pixels
    assert back.dtype == np.uint8
    difference = np.abs(back.astype(float) - deep / 257)
    assert difference.mean() < 2 if suffix == ".jpg" else difference.max() <= 0.5


def test_jpeg_keeps_full_chroma(photo: DecodedImage, tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", photo)
    with Image.open(tmp_path / "a.jpg") as image:
        assert {tuple(layer[1:3]) for layer in image.layer} == {(1, 1)}
    difference = read_image(tmp_path / "a.jpg").pixels.astype(float) - photo.pixels
    assert (difference**2).mean() < 6  # PSNR above 40 dB


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_profile_and_exif_are_kept(photo: DecodedImage, tmp_path: Path, suffix: str, dtype: type) -> None:
    exif = Image.Exif()
    exif[272], exif[315] = "A camera", "Somebody"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    image = DecodedImage(photo.pixels.astype(dtype), icc=photo.icc, exif=exif.tobytes())
    write_image(tmp_path / f"a{suffix}", image)
    back = read_image(tmp_path / f"a{suffix}")
    kept = Image.Exif()
    kept.load(back.exif)
    assert back.icc == photo.icc
    assert kept[272] == "A camera"
    assert kept[315] == "Somebody"
    assert kept.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_an_image_without_profile_and_exif_gets_none(photo: DecodedImage, tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", DecodedImage(photo.pixels))
    back = read_image(tmp_path / f"a{suffix}")
    assert (back.icc, back.exif) == (b"", b"")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_keeps_resolution_place_and_every_text(photo: DecodedImage, tmp_path: Path, dtype: type) -> None:
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = 300.0, 150.5, 3
    texts = dict.fromkeys((270, 271, 272, 305, 306, 315, 316, 33432), "plain words")
    exif.update(texts)
    exif[315] = "Müller"  # a TIFF's text is ASCII
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.5)
    exif.get_ifd(0x8769)[0x829A] = 0.004
    path = tmp_path / "a.tif"
    write_image(path, DecodedImage(photo.pixels.astype(dtype), exif=exif.tobytes()))
    kept = Image.Exif()
    kept.load(read_image(path).exif)
    assert (kept[282], kept[283], kept[296]) == (300, 150.5, 3)
    assert {tag: kept[tag] for tag in texts} == {**texts, 315: "M?ller"}
    assert kept.get_ifd(0x8825)[2] == (52, 31, 12.5)
    assert kept.get_ifd(0x8769)[0x829A] == pytest.approx(0.004)
    with Image.open(path) as image:
        assert image.getexif().get_ifd(0x8825)[2] == (52, 31, 12.5)
        np.testing.assert_array_equal(np.asarray(image) if dtype == np.uint8 else photo.pixels, photo.pixels)


@pytest.mark.parametrize("unit", [None, 0, 9])
@pytest.mark.parametrize("x", [0.0, 72.0])
def test_a_tiff_is_written_whatever_the_exif_says_of_resolution(
    photo: DecodedImage, tmp_path: Path, unit: int | None, x: float
) -> None:
    exif = Image.Exif()
    exif[282], exif[283], exif[272] = x, 72.0, "A camera"
    if unit is not None:
        exif[296] = unit
    write_image(tmp_path / "a.tif", DecodedImage(photo.pixels, exif=exif.tobytes()))
    kept = Image.Exif()
    kept.load(read_image(tmp_path / "a.tif").exif)
    assert (kept[282], kept[283], kept[272]) == (x, 72.0, "A camera")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (4, 3), (257, 2)])
def test_tiffs_of_few_pixels_come_back(tmp_path: Path, dtype: type, channels: int, size: tuple[int, int]) -> None:
    pixels = np.arange(size[0] * size[1] * channels).reshape(*size, channels).astype(dtype)
    for alpha in (None, pixels[..., 0]):
        write_image(tmp_path / "a.tif", DecodedImage(pixels, alpha))
        back = read_image(tmp_path / "a.tif")
        np.testing.assert_array_equal(back.pixels[..., :channels], pixels)
        assert (back.alpha is None) == (alpha is None)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_one_image_gives_the_same_bytes_each_time(deep: np.ndarray, tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[272] = "A camera"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    for name in "ab":
        write_image(tmp_path / f"{name}{suffix}", DecodedImage(deep, deep[..., 0], exif=exif.tobytes()))
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_real_camera_exif_survives_every_format(mirror: Path, tmp_path: Path) -> None:
    """A real photograph, taken upright with the camera on its side, with maker notes."""
    (source,) = mirror.glob("imagenet/train/*/n02951585_can_opener.JPEG")
    with Image.open(source) as image:
        assert image.getexif()[274] == 6
        raw, width, height = image.info["exif"], image.width, image.height
    decoded = read_image(source)
    assert decoded.pixels.shape == (width, height, 3)
    assert image_size(source) == (width, height)
    assert sum(a != b for a, b in zip(raw, decoded.exif, strict=True)) == 1  # the orientation
    for suffix in (".jpg", ".png", ".webp", ".tif"):
        write_image(tmp_path / f"a{suffix}", decoded)
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.getexif().get(274, 1) == 1
            assert image.getexif()[271] == Image.open(source).getexif()[271]
        assert read_image(tmp_path / f"a{suffix}").pixels.shape == decoded.pixels.shape


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_once(photo: DecodedImage, tmp_path: Path, orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    path = tmp_path / "a"
    path.write_bytes(saved(Image.fromarray(photo.pixels), format, exif=exif, **options))
    image = read_image(path)
    upright = turned(photo.pixels, orientation)
    assert image.pixels.shape == upright.shape
    assert image_size(path) == upright.shape[:2]
    difference = np.abs(image.pixels.astype(int) - upright)
    assert difference.mean() < 1 if format == "JPEG" else difference.max() == 0
    write_image(tmp_path / "b.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").pixels, image.pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_of_16_bits(deep: np.ndarray, tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        exif = Image.Exif()
        exif[274] = orientation
        write_image(path, DecodedImage(deep, deep[..., 0], exif=exif.tobytes()))
    else:
        rgba = np.dstack([deep, deep[..., 0]])
        tag = (274, 3, 1, orientation, True)
        tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], extratags=[tag])
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, turned(deep, orientation))
    np.testing.assert_array_equal(image.alpha, turned(deep[..., 0], orientation))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn upright, written as the EXIF standard words it: where row 0 and column 0 are."""
    return {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation](pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_dropped(photo: DecodedImage) -> None:
    image = Image.fromarray(photo.pixels)
    for block in (b"Exif\0\0garbage!", b"Exif\0\0II*\0\xff\xff\xff\x7f"):
        decoded = read_image(saved(image, "JPEG", exif=block))
        assert decoded.pixels.shape == photo.pixels.shape
        assert decoded.exif == b""


@pytest.mark.parametrize("name", ["m" * 246, "雪" * 82 + "mm", "a\nb\x1b[1m", "-"])
def test_any_name_that_the_file_system_takes(photo: DecodedImage, tmp_path: Path, name: str) -> None:
    for suffix in (".png", ".tif", ".webp", ".jpg"):
        write_image(tmp_path / f"{name}{suffix}", photo)
        assert read_image(tmp_path / f"{name}{suffix}").pixels.shape == photo.pixels.shape


# Kinds of images


def test_palette_and_1_bit(photo: DecodedImage) -> None:
    image = Image.fromarray(photo.pixels)
    palette = image.quantize(17)
    np.testing.assert_array_equal(read_image(saved(palette, "PNG")).pixels, np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(read_image(saved(palette, "GIF")).pixels, np.asarray(palette.convert("RGB")))
    transparent = read_image(saved(palette, "PNG", transparency=3))
    assert transparent.pixels.shape[2] == 3
    np.testing.assert_array_equal(transparent.alpha, np.where(np.asarray(palette) == 3, 0, 255))
    bits = image.convert("1")
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        back = read_image(saved(bits, format)).pixels
        assert set(np.unique(back)) == {0, 255}
        np.testing.assert_array_equal(back[..., 0] > 0, np.asarray(bits))


def test_a_transparent_grey_value(photo: DecodedImage, deep: np.ndarray) -> None:
    grey = photo.pixels[..., :1]
    key = int(grey[70, 90, 0])
    image = read_image(png(grey, 8, 0, (b"tRNS", struct.pack(">H", key))))
    np.testing.assert_array_equal(image.alpha, np.where(grey[..., 0] == key, 0, 255))
    key = int(deep[70, 90, 0])
    image = read_image(png(deep[..., :1], 16, 0, (b"tRNS", struct.pack(">H", key))))
    np.testing.assert_array_equal(image.pixels, deep[..., :1])
    np.testing.assert_array_equal(image.alpha, np.where(deep[..., 0] == key, 0, 65535))


@pytest.mark.parametrize("depth", [8, 16])
def test_gamma_and_srgb_chunks_change_nothing(photo: DecodedImage, deep: np.ndarray, depth: int) -> None:
    pixels = photo.pixels if depth == 8 else deep
    data = png(pixels, depth, 2, (b"gAMA", struct.pack(">I", 45455)), (b"sRGB", b"\0"))
    np.testing.assert_array_equal(read_image(data).pixels, pixels)
    data = png(pixels, depth, 2, (b"gAMA", struct.pack(">I", 100000)))
    np.testing.assert_array_equal(read_image(data).pixels, pixels)


def test_cmyk_jpeg_becomes_rgb(photo: DecodedImage) -> None:
    cmyk = Image.fromarray(photo.pixels).convert("CMYK")
    image = read_image(saved(cmyk, "JPEG", quality=100, subsampling=0))
    assert np.abs(image.pixels.astype(int) - photo.pixels).mean() < 2
    broken_profile = read_image(saved(cmyk, "JPEG", quality=100, subsampling=0, icc_profile=b"no profile"))
    np.testing.assert_array_equal(broken_profile.pixels, image.pixels)
    assert broken_profile.icc == b""  # it described CMYK


def test_min_is_white_tiff_of_16_bits(deep: np.ndarray, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", 65535 - deep[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels[..., 0], deep[..., 0])


def test_a_real_16_bit_png(photographs: Path) -> None:
    image = read_image(photographs / "chessboard_RGB.png")
    assert image.pixels.dtype == np.uint16
    assert (image.pixels % 257).any()  # more than 8 bits stretched to 16


def test_ycbcr_tiff_and_pgm(photo: DecodedImage) -> None:
    image = Image.fromarray(photo.pixels)
    ycbcr = read_image(saved(image.convert("YCbCr"), "TIFF", compression="raw")).pixels
    assert np.abs(ycbcr.astype(int) - photo.pixels).mean() < 2
    np.testing.assert_array_equal(read_image(saved(image, "PPM")).pixels, photo.pixels)
    grey = image.convert("L")
    np.testing.assert_array_equal(read_image(saved(grey, "PPM")).pixels[..., 0], np.asarray(grey))


def test_cmyk_is_converted_by_its_profile(photo: DecodedImage) -> None:
    """An embedded profile decides; an RGB one on CMYK pixels does not fit and is ignored."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk = Image.fromarray(photo.pixels).convert("CMYK")
    plain = read_image(saved(cmyk, "TIFF"))
    misfit = read_image(saved(cmyk, "TIFF", icc_profile=srgb))
    np.testing.assert_array_equal(misfit.pixels, plain.pixels)


def test_an_image_larger_than_pillows_limit(photo: DecodedImage, tmp_path: Path) -> None:
    """30000x20000, more than twice what Pillow lets pass; only the head of the file is there and is read."""
    data = bytearray(png(photo.pixels, 8, 2))
    data[16:24] = struct.pack(">II", 30000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "large.png").write_bytes(data)
    assert image_size(tmp_path / "large.png") == (20000, 30000)
    data[16:24] = struct.pack(">II", 60000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(UserError, match="60000x20000"):
        read_image(bytes(data))


# Tensors


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_survive_the_way_through_floats(dtype: type) -> None:
    most = np.iinfo(dtype).max
    pixels = np.arange(most + 1, dtype=dtype).reshape(-1, 64, 1)
    tensor = to_tensor(pixels)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (0, 1)
    np.testing.assert_array_equal(to_pixels(tensor, dtype), pixels)


def test_to_tensor_orders_channels_first(photo: DecodedImage) -> None:
    tensor = to_tensor(photo.pixels)
    assert tensor.shape == (3, 151, 203)
    assert tensor.is_contiguous()
    assert tensor[2, 5, 7] * 255 == photo.pixels[5, 7, 2]


def test_to_pixels_clips_and_rounds() -> None:
    tensor = torch.tensor([-1.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 7.0]).reshape(1, 1, 5)
    np.testing.assert_array_equal(to_pixels(tensor).ravel(), [0, 0, 1, 255, 255])


def test_as_channels(photo: DecodedImage) -> None:
    colour = to_tensor(photo.pixels)
    grey = as_channels(colour, 1)
    torch.testing.assert_close(grey, (colour[:1] + colour[1:2] + colour[2:]) / 3)
    assert as_channels(colour, 3) is colour
    torch.testing.assert_close(as_channels(grey[None], 3), torch.cat([grey] * 3)[None])


@settings(deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    multiple=st.sampled_from([1, 2, 8, 32]),
    batch=st.integers(1, 2),
)
def test_pad_and_unpad(height: int, width: int, multiple: int, batch: int) -> None:
    image = torch.arange(batch * height * width, dtype=torch.float32).reshape(batch, 1, height, width)
    padded = pad(image, multiple)
    high, wide = padded.shape[-2:]
    assert high % multiple == 0 <= high - height < multiple
    assert wide % multiple == 0 <= wide - width < multiple
    assert torch.equal(unpad(padded, height, width), image)
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), (0, high - height), (0, wide - width)], mode="reflect")
    np.testing.assert_array_equal(padded.numpy(), expected)  # NumPy too reflects back and forth


def test_pixel_hash_knows_shape_type_and_values(photo: DecodedImage) -> None:
    pixels = photo.pixels
    digest = pixel_hash(pixels)
    assert digest == pixel_hash(np.asfortranarray(pixels))
    other = pixels.copy()
    other[3, 4, 1] ^= 1
    turned_over = pixels.reshape(203, 151, 3)
    digests = {digest, pixel_hash(other), pixel_hash(turned_over), pixel_hash(pixels.astype(np.uint16))}
    assert len(digests) == 4
    assert len(digest) == 64


def test_the_same_pixels_have_one_hash_in_every_lossless_format(photo: DecodedImage, tmp_path: Path) -> None:
    for suffix in LOSSLESS:
        write_image(tmp_path / f"a{suffix}", photo)
    assert len({pixel_hash(read_image(path).pixels) for path in tmp_path.iterdir()}) == 1

"""Images that are broken, unusual, or more than a format can hold."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from denoise.errors import UserError
from denoise.images.io import DecodedImage, check_target, image_size, read_image, write_image


def test_several_pages_are_refused(photographs: Path) -> None:
    for name, pages in (("multipage.tif", 2), ("no_time_for_that_tiny.gif", 24)):
        with pytest.raises(UserError, match=f"{name} holds {pages} images"):
            read_image(photographs / name)


def test_a_thumbnail_page_is_no_second_image(photo: DecodedImage, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(photo.pixels, photometric="rgb")
        tiff.write(photo.pixels[::4, ::4], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, photo.pixels)


@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        (np.float32, {}, "floating-point"),
        (np.int16, {}, "signed"),
        (np.uint32, {}, "32 bits"),
        (np.uint16, {"photometric": "rgb", "planarconfig": "separate"}, "16-bit PNG"),
    ],
)
def test_unusual_tiffs_are_refused(
    deep: np.ndarray, tmp_path: Path, dtype: type, options: dict[str, str], words: str
) -> None:
    planes = np.ascontiguousarray(deep.transpose(2, 0, 1)) if options else deep[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", planes.astype(dtype), **options)
    with pytest.raises(UserError, match=words):
        read_image(tmp_path / "a.tif")


def test_16_bit_ppm_is_refused(deep: np.ndarray) -> None:
    data = b"P6\n%d %d\n65535\n" % deep.shape[1::-1] + deep.astype(">u2").tobytes()
    with pytest.raises(UserError, match="PPM"):
        read_image(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_truncated_files_are_named(photo: DecodedImage, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    write_image(path, photo)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=f"cut{suffix} does not decode"):
        read_image(path)
    with pytest.raises(UserError, match="image does not decode"):
        read_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_truncated_16_bits_are_named(deep: np.ndarray, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    write_image(path, DecodedImage(deep))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=f"cut{suffix} does not decode"):
        read_image(path)


def test_a_flipped_byte_in_a_png_is_found(photo: DecodedImage, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photo)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(UserError, match="does not decode"):
        read_image(bytes(data))


def test_16_bits_of_more_than_a_million_pixels_a_side_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", DecodedImage(np.zeros((1, 1_000_001, 1), np.uint16)))
    for read in (read_image, image_size):
        with pytest.raises(UserError, match="1000001x1 of 16 bits"):
            read(tmp_path / "a.png")


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    for path in (tmp_path / "a.png", tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            read_image(path)
        with pytest.raises(UserError, match=str(path)):
            image_size(path)


def test_what_a_format_cannot_hold_is_said_before_writing(photo: DecodedImage, tmp_path: Path) -> None:
    alpha = photo.pixels[..., 0]
    wide = DecodedImage(np.zeros((1, 20000, 3), np.uint8))
    for name, image, words in [
        ("a.jpg", DecodedImage(photo.pixels, alpha), "no transparency"),
        ("a.webp", wide, "16383"),
        ("a.gif", photo, "extension"),
        ("a", photo, "extension"),
    ]:
        with pytest.raises(UserError, match=words):
            check_target(tmp_path / name, image)
        with pytest.raises(UserError, match=words):
            write_image(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(photo: DecodedImage, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photo)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(UserError, match="cannot write"):
        write_image(tmp_path / "none" / "a.png", photo)
    with pytest.raises(UserError, match="cannot write"):
        write_image(tmp_path / "a.png" / "b.png", photo)
    with pytest.raises(UserError, match="cannot write"):  # JPEG holds no EXIF block of this size
        write_image(tmp_path / "b.jpg", DecodedImage(photo.pixels, exif=b"Exif\0\0" + bytes(70000)))
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

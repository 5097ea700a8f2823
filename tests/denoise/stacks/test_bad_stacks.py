"""Files that are no stacks that are read: one sentence each, which names the file."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.stacks.kinds import is_stack
from denoise.stacks.opening import open_stack
from tests.denoise.stacks.made_files import values


def _two_shapes(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        writer.write(values((20, 24), "uint8"), photometric="minisblack")
        writer.write(values((20, 30), "uint8"), photometric="minisblack")


def _cut(path: Path) -> None:
    tifffile.imwrite(path, values((9, 64, 64), "float32"), compression="zlib", photometric="minisblack")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 999] = bytes(999)
    path.write_bytes(data)


def _tiff(shape: tuple[int, ...], dtype: str, **options: object) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, values(shape, dtype), **options)


def _plain_zarr(path: Path) -> None:
    import zarr

    zarr.open_group(path, mode="w").create_array("0", shape=(4, 4), dtype="uint8")


CASES = {
    "plain.zarr": (_plain_zarr, "holds no image of OME-Zarr"),
    "mixed.tif": (_two_shapes, "holds 2 series of images .20x24, 20x30."),
    "rgba.tif": (_tiff((4, 20, 24, 4), "uint8", photometric="rgb"), "RGB with 4 channels"),
    "int32.tif": (_tiff((4, 20, 24), "int32", photometric="minisblack"), "values of the type int32"),
    "double.npy": (lambda path: np.save(path, np.ones((4, 5, 6))), "values of the type float64"),
    "line.npy": (lambda path: np.save(path, np.ones(4, np.float32)), "an array of 1 sides"),
    "objects.npy": (lambda path: np.save(path, np.array([None, "a"]), allow_pickle=True), "cannot be opened"),
    "empty.npy": (lambda path: path.write_bytes(b""), "cannot be opened as a stack"),
    "two.npz": (lambda path: np.savez(path, a=np.ones(3), b=np.ones(3)), "holds 2 arrays"),
    "text.mrc": (lambda path: path.write_text("no volume" * 200), "cannot be opened as a stack"),
    "complex.mrc": (lambda path: path.write_bytes(b""), "cannot be opened as a stack"),
    "missing.npy": (lambda path: None, "No such file|no such file"),
    "volume.tif": (_tiff((4, 32, 32), "uint8", volumetric=True, photometric="minisblack"), "volumes in its pages"),
    "packed.tif": (_tiff((2, 20, 24), "uint16", bitspersample=12, photometric="minisblack"), "12 bits"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_read_is_said(name: str, tmp_path: Path) -> None:
    write, sentence = CASES[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=sentence) as told, open_stack(tmp_path / name):
        pass
    assert name in str(told.value)


def test_a_plane_that_does_not_decode_is_named(tmp_path: Path) -> None:
    _cut(tmp_path / "cut.tif")
    with open_stack(tmp_path / "cut.tif") as stack, pytest.raises(UserError, match=r"cut.tif/q\d"):
        list(stack.planes())


def test_without_the_extra_a_sentence_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mrcfile", None)
    with (
        pytest.raises(UserError, match=r"mrcfile, which is not installed: `pip install 'noise2x\[mrc\]'`"),
        open_stack(tmp_path / "a.mrc"),
    ):
        pass


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}], ids=["plain", "deflated"])
@pytest.mark.parametrize(("shape", "dtype"), [((20, 24), "uint8"), ((20, 24, 3), "uint16"), ((20, 24, 4), "uint8")])
def test_single_images_are_no_stacks(shape: tuple[int, ...], dtype: str, options: dict, tmp_path: Path) -> None:
    photometric = "rgb" if len(shape) > 2 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", values(shape, dtype), photometric=photometric, **options)
    assert not is_stack(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").pixels.dtype == dtype


def test_a_broken_tiff_is_none_and_is_told_as_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II\x2a\0\xff\xff\xff\xff")
    assert not is_stack(tmp_path / "a.tif")
    with pytest.raises(UserError, match="does not decode as an image"):
        read_image(tmp_path / "a.tif")

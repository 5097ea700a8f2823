"""Stacks in, restored stacks out: the same file but for what the model changes."""

import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from torch import Tensor

from denoise.errors import UserError
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.images.tiles import Tiles
from denoise.rng import Rng
from denoise.stacks.opening import open_stack
from denoise.stacks.options import StackOptions
from denoise.stacks.value_range import ValueRange
from pipelines.restore.files import restore_files
from tests.denoise.stacks.made_files import KINDS, Kind, values


@dataclass
class Scaling:
    """A denoiser that leaves a share of every value of the range."""

    share: float = 1.0
    value_range: ValueRange | None = None
    channels: int = 1
    multiple: int = 16
    noise: str = "gauss25"
    name: str = "n2n"
    deviation: float = 0.0
    needs_level: bool = False
    pixels_per_pass: int = 1 << 20
    tiles: Tiles | None = None

    def __call__(self, noisy: Tensor, sigma: Tensor | None = None, rng: Rng | None = None) -> Tensor:
        return noisy * self.share


def planes(path: Path) -> dict[str, NDArray[Any]]:
    with open_stack(path) as stack:
        return {stack.name(number).rpartition("/")[2]: stack.plane(number) for number in range(len(stack))}


def tags(path: Path) -> list[dict[int, str]]:
    places = (273, 278, 279, 259, 317, 322, 323, 324, 325, 330)
    with tifffile.TiffFile(path) as tiff:
        pages = [tiff.pages.get(number, aspage=True) for number in range(len(tiff.pages))]
        return [{tag.code: str(tag.value) for tag in page.tags if tag.code not in places} for page in pages]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("tile", [None, 16])
def test_a_model_that_changes_nothing_leaves_every_bit(kind: Kind, tile: int | None, tmp_path: Path) -> None:
    """Values, shape, axes, type and metadata, by tiles that overlap as well."""
    kind.write(tmp_path / kind.name, values(kind.shape, kind.dtype))
    target = tmp_path / "out" / kind.name
    restore_files([tmp_path / kind.name], target, Scaling(), tile=tile, overlap=None if tile is None else 0)
    before, after = planes(tmp_path / kind.name), planes(target)
    assert before.keys() == after.keys()
    for name, plane in before.items():
        assert after[name].dtype == plane.dtype
        np.testing.assert_array_equal(after[name], plane)
    with open_stack(tmp_path / kind.name) as old, open_stack(target) as new:
        assert old.layout == new.layout
    if kind.name.endswith(".tif") and kind.name != "one_file_one_page.tif":
        assert tags(target) == tags(tmp_path / kind.name)


def test_planes_are_restored_in_units_of_the_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = values((4, 20, 24), "int16") // 100
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    options = StackOptions(value_range="-100,300")
    restore_files([tmp_path / "a.tif"], tmp_path / "b.tif", Scaling(0.5), stacks=options)
    expected = np.rint(array - (array + 100.0) * 0.5).astype(np.int16)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "b.tif"), expected, atol=1)
    told = capsys.readouterr().err
    assert "4 of 4 planes with negative values" in told
    assert "restore: 4/4 tiles" in told


def test_the_range_is_measured_where_nobody_gives_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.random.default_rng(0).normal(500, 20, (2, 64, 64)).astype(np.float32)
    array[0, 3, 3] = 1e6  # a hot pixel
    np.save(tmp_path / "a.npy", array)
    restore_files([tmp_path / "a.npy"], tmp_path / "b.npy", Scaling(0.0))
    low = np.load(tmp_path / "b.npy")[1].mean()
    assert 420 < low < 450
    assert f"in the range {low:.3f}"[:19] in capsys.readouterr().err


def test_the_range_of_the_model_is_used_and_values_far_outside_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.random.default_rng(0).normal(500, 20, (2, 64, 64)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    restore_files([tmp_path / "a.npy"], tmp_path / "b.npy", Scaling(0.0, ValueRange(400, 600)))
    assert np.allclose(np.load(tmp_path / "b.npy"), 400)
    assert "warning" not in capsys.readouterr().err
    restore_files([tmp_path / "a.npy"], tmp_path / "b.npy", Scaling(0.0, ValueRange(0, 1)))
    assert "the model was trained on 0,1 and does not know such values" in capsys.readouterr().err


def test_an_image_is_restored_in_the_range_of_the_model_too(tmp_path: Path) -> None:
    pixels = (values((20, 24, 1), "uint16") % 500 + 400).astype(np.uint16)
    write_image(tmp_path / "a.tif", DecodedImage(pixels))
    restore_files([tmp_path / "a.tif"], tmp_path / "b.tif", Scaling(0.5, ValueRange(400, 900)))
    np.testing.assert_allclose(read_image(tmp_path / "b.tif").pixels, 400 + (pixels - 400.0) / 2, atol=0.51)


def test_constant_planes_are_copied_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = values((4, 20, 24), "uint16")
    array[2] = 77
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    restore_files([tmp_path / "a.tif"], tmp_path / "b.tif", Scaling(0.5))
    restored = tifffile.imread(tmp_path / "b.tif")
    assert (restored[2] == 77).all()
    assert restored[1].mean() < 0.6 * array[1].mean()
    told = capsys.readouterr().err
    assert "a.tif has 1 of 4 planes constant (copied as they are)" in told
    assert "restore: 3/3 tiles" in told


def test_a_plane_that_is_no_number_is_refused_by_name_or_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = values((12, 20, 24), "float32")
    array[7, 3, 4] = np.nan
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=r"a\.npy/z07; --keep-going copies") as told:
        restore_files([tmp_path / "a.npy"], tmp_path / "b.npy", Scaling(0.5))
    assert str(told.value).count(". ") == 0
    assert not (tmp_path / "b.npy").exists()
    restore_files([tmp_path / "a.npy"], tmp_path / "b.npy", Scaling(0.5), keep_going=True)
    restored = np.load(tmp_path / "b.npy")
    np.testing.assert_array_equal(restored[7], array[7])
    assert not np.array_equal(restored[6], array[6])
    assert "1 of 12 planes with values that are no number (copied as they are)" in capsys.readouterr().err


def test_one_channel_is_restored_and_the_others_copied(tmp_path: Path) -> None:
    array = values((3, 2, 20, 24), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "TCYX"})
    restore_files([tmp_path / "a.tif"], tmp_path / "b.tif", Scaling(0.5), stacks=StackOptions(channels="1"))
    restored = tifffile.imread(tmp_path / "b.tif")
    np.testing.assert_array_equal(restored[:, 0], array[:, 0])
    assert restored[:, 1].mean() < 0.6 * array[:, 1].mean()


def test_channels_as_colour(tmp_path: Path) -> None:
    array = values((2, 3, 20, 24), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "TCYX"}, compression="zlib")
    options = StackOptions(channels="joint", value_range="type")
    restore_files([tmp_path / "a.tif"], tmp_path / "b.tif", Scaling(0.5, channels=3), stacks=options)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "b.tif"), array * 0.5, atol=0.51)


def test_axes_of_a_file_that_names_none(tmp_path: Path) -> None:
    array = values((24, 20, 5), "uint16")
    np.save(tmp_path / "a.npy", array)
    restore_files([tmp_path / "a.npy"], tmp_path / "b.npy", Scaling(), stacks=StackOptions(axes="YXZ"))
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array)
    with pytest.raises(UserError, match=r"a\.npy has the sides 24x20x5, which the axes TZYX do not fit"):
        restore_files([tmp_path / "a.npy"], tmp_path / "b.npy", Scaling(), stacks=StackOptions(axes="TZYX"))


def test_a_folder_of_images_and_stacks(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(folder / "b.png", DecodedImage(values((20, 24, 1), "uint8")))
    write_image(folder / "d.tif", DecodedImage(values((20, 24, 1), "uint16")))
    np.save(folder / "a.npy", values((2, 20, 24), "float32"))
    tifffile.imwrite(folder / "c.tif", values((2, 20, 24), "float32"), photometric="minisblack")
    results = restore_files([folder], tmp_path / "out", Scaling(0.5))
    assert [result.target.name for result in results] == ["a.npy", "b.png", "c.tif", "d.tif"]
    assert read_image(tmp_path / "out" / "d.tif").pixels.dtype == np.uint16
    (folder / "c.tif").write_bytes((folder / "c.tif").read_bytes()[:-4000])
    with pytest.raises(UserError, match="1 of 4 images could not be restored"):
        restore_files([folder], tmp_path / "out", Scaling(0.5), keep_going=True)


@pytest.mark.parametrize("target", ["b.png", "b.npy", "b.txt"])
def test_a_stack_becomes_a_file_of_its_own_kind(target: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values((2, 20, 24), "uint8"), photometric="minisblack")
    with pytest.raises(UserError, match="a.tif is a stack, which becomes a file of the same kind; choose .tif"):
        restore_files([tmp_path / "a.tif"], tmp_path / target, Scaling())


def test_an_interrupted_stack_leaves_nothing(tmp_path: Path) -> None:
    class Failing(Scaling):
        def __call__(self, noisy: Tensor, sigma: Tensor | None = None, rng: Rng | None = None) -> Tensor:
            raise KeyboardInterrupt

    for name in ("a.tif", "a.npy"):
        kind = next(kind for kind in KINDS if kind.name.endswith(name[-4:]))
        kind.write(tmp_path / name, values(kind.shape, kind.dtype))
        with pytest.raises(KeyboardInterrupt):
            restore_files([tmp_path / name], tmp_path / "out" / name, Failing())
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_memory_is_that_of_a_few_planes(compression: str | None, tmp_path: Path) -> None:
    array = values((60, 128, 128), "float32")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", compression=compression)
    del array
    tracemalloc.start()
    restore_files([tmp_path / "a.tif"], tmp_path / "b.tif", Scaling(0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 128 * 128 * 4 / 2

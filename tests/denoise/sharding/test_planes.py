"""Planes of stacks as samples of a set: names, bytes, the range of their values, and how they are read."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from denoise.data.crops import random_crop
from denoise.data.dataset import ShardedDataset
from denoise.data.index import mode_of, read_mode
from denoise.data.shards import DamagedError, Shards
from denoise.errors import UserError
from denoise.images.io import DecodedImage, write_image
from denoise.images.tensors import to_tensor
from denoise.sharding.plan import SampleFilter
from denoise.sharding.writer import write_shards
from denoise.stacks.encoded import decode_plane, encode_plane
from denoise.stacks.options import StackOptions
from denoise.stacks.value_range import TYPES, ValueRange
from pipelines.datasets.shard import find_sources
from tests.denoise.stacks.made_files import values


@pytest.fixture
def movies(tmp_path: Path) -> Path:
    """A folder with a movie of two channels, a second one, and a single plane."""
    folder = tmp_path / "movies"
    (folder / "b").mkdir(parents=True)
    movie = np.random.default_rng(0).normal(500, 30, (11, 2, 40, 48)).astype(np.float32)
    movie[3, 1, 5, 6] = 1e6  # a hot pixel
    tifffile.imwrite(folder / "a.tif", movie, imagej=True, metadata={"axes": "TCYX"})
    np.save(folder / "b" / "c.npy", movie[:3, 0] + 10)
    tifffile.imwrite(folder / "one.tif", movie[0, 0])
    return folder


AS_THEY_SAY = StackOptions()


def shard(folder: Path, target: Path, stacks: StackOptions = AS_THEY_SAY, **options: object) -> Shards:
    write_shards(target, find_sources(folder, stacks), 40_000, value_range=stacks.value_range, **options)
    return Shards.open(target)


def test_planes_are_samples_by_name_and_as_stored(movies: Path, tmp_path: Path) -> None:
    shards = shard(movies, tmp_path / "shards")
    names = [shards.describe(index)["name"] for index in range(len(shards))]
    assert names[:3] == ["a.tif/t00_c0", "a.tif/t00_c1", "a.tif/t01_c0"]
    assert names[22:] == ["b/c.npy/z0", "b/c.npy/z1", "b/c.npy/z2", "one.tif"]
    assert names == sorted(names)
    movie = tifffile.imread(movies / "a.tif")
    for index in (0, 7, 21):
        pixels = shards.pixels(index)
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels[..., 0], movie[index // 2, index % 2])
    assert shards.describe(0)["views"]["clean"]["mode"] == "L;float32"
    assert len(shards.entries) > 3


def test_the_range_leaves_hot_pixels_out_and_is_stored_in_the_index(movies: Path, tmp_path: Path) -> None:
    shards = shard(movies, tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert (index["format"], index["range"]) == (3, {"low": shards.value_range.low, "high": shards.value_range.high})
    assert 370 < shards.value_range.low < 410
    assert 590 < shards.value_range.high < 640


def test_the_same_bytes_with_several_processes_and_after_an_interruption(movies: Path, tmp_path: Path) -> None:
    plain, parallel = shard(movies, tmp_path / "a"), shard(movies, tmp_path / "b", jobs=2)
    assert plain.digest == parallel.digest
    done = 0

    def stop(result: object) -> None:
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(movies, tmp_path / "c", on_shard_written=stop)
    reused = []
    again = shard(movies, tmp_path / "c", on_shard_written=lambda result: reused.append(result.reused))
    assert any(reused)
    assert again.digest == plain.digest


def test_a_dataset_returns_planes_in_units_of_the_range(movies: Path, tmp_path: Path) -> None:
    shards = shard(movies, tmp_path / "shards", StackOptions(value_range="400,600"))
    stored = shards.pixels(0)
    for cached in (False, True):
        dataset = ShardedDataset([shards])
        if cached:
            dataset.keep_decoded(1 << 24)
        for _ in range(2):
            pixels = dataset.pixels(0, "clean")
            assert pixels.dtype == np.float32
            np.testing.assert_allclose(pixels, (stored - 400) / 200, rtol=1e-6)
        tensor = to_tensor(pixels)
        tensor.mul_(2)  # a copy: what processes share stays as it is
        np.testing.assert_array_equal(dataset.pixels(0, "clean"), pixels)
        crop = random_crop(pixels, 16, (0.0, 0.0))
        assert (crop.dtype, crop.shape) == (torch.float32, (1, 16, 16))
        dataset.close()
    of_a_model = ShardedDataset([shards], ValueRange(0, 1000))
    np.testing.assert_allclose(of_a_model.pixels(0, "clean"), stored / 1000, rtol=1e-6)


def test_several_sets_have_one_range_or_none(movies: Path, small_shards: Path, tmp_path: Path) -> None:
    low = shard(movies, tmp_path / "low", StackOptions(value_range="0,600"))
    high = shard(movies, tmp_path / "high", StackOptions(value_range="100,900"))
    assert ShardedDataset([low, high]).value_range == ValueRange(0, 900)
    photographs = Shards.open(small_shards)
    assert ShardedDataset([photographs]).value_range is None
    with pytest.raises(UserError, match=r"small has no range of values and another set has one"):
        ShardedDataset([low, photographs]).require_one_range()


@pytest.mark.parametrize(
    ("dtype", "wanted", "expected"),
    [
        ("uint8", "auto", ValueRange(0, 255)),
        ("uint16", "type", ValueRange(0, 65535)),
        ("int16", "type", ValueRange(-32768, 32767)),
        ("uint16", "auto", None),
        ("uint8", "percentiles", None),
    ],
)
def test_ranges_that_are_asked_for(dtype: str, wanted: str, expected: ValueRange | None, tmp_path: Path) -> None:
    array = (values((3, 40, 48), dtype) // 4).astype(dtype)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", array, photometric="minisblack")
    found = shard(tmp_path / "in", tmp_path / "out", StackOptions(value_range=wanted)).value_range
    if expected is None:
        assert 0 <= found.low < found.high <= np.iinfo(dtype).max / 4
    else:
        assert found == expected


def test_images_of_16_bits_can_be_measured_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = (values((40, 48, 1), "uint16") % 4096).astype(np.uint16)
    write_image(tmp_path / "in" / "a.png", DecodedImage(pixels))
    assert shard(tmp_path / "in", tmp_path / "plain").value_range is None
    shards = shard(tmp_path / "in", tmp_path / "measured", StackOptions(value_range="percentiles"))
    assert 4000 < shards.value_range.high < 4096
    np.testing.assert_array_equal(shards.pixels(0), pixels)
    assert ShardedDataset([shards]).pixels(0, "clean").max() > 1


def test_values_that_no_range_fits_are_one_sentence(movies: Path, tmp_path: Path) -> None:
    write_image(movies / "photo.png", DecodedImage(values((40, 48, 1), "uint8")))
    with pytest.raises(UserError, match="types float32 and uint8, which no one range fits"):
        shard(movies, tmp_path / "shards")
    assert shard(movies, tmp_path / "shards", StackOptions(value_range="0,700")).value_range == ValueRange(0, 700)


def test_planes_of_one_value_have_no_range(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.full((3, 40, 48), 7, np.float32))
    with pytest.raises(UserError, match="no values that differ, so their range is zero"):
        shard(tmp_path / "in", tmp_path / "shards")


def test_a_plane_that_is_no_number_is_refused_or_left_out_by_name(movies: Path, tmp_path: Path) -> None:
    broken = np.load(movies / "b" / "c.npy")
    broken[1, 0, 0] = np.nan
    np.save(movies / "b" / "c.npy", broken)
    with pytest.raises(UserError, match=r"c\.npy holds values that are no number in c\.npy/z1"):
        shard(movies, tmp_path / "shards")
    results = write_shards(tmp_path / "shards", find_sources(movies), 1 << 20, SampleFilter(skip_broken=True))
    assert next(error for result in results for error in result.errors).count("c.npy/z1") == 1
    assert len(Shards.open(tmp_path / "shards")) == 25


def test_a_stack_that_is_not_read_is_refused_or_left_out(movies: Path, tmp_path: Path) -> None:
    np.save(movies / "z.npy", np.ones((2, 40, 48)))
    with pytest.raises(UserError, match="values of the type float64"):
        shard(movies, tmp_path / "shards")
    assert len(shard(movies, tmp_path / "shards", sample_filter=SampleFilter(skip_broken=True))) == 26


def test_one_channel_of_several_and_other_axes(movies: Path, tmp_path: Path) -> None:
    (movies / "one.tif").unlink()
    (movies / "b" / "c.npy").unlink()
    shards = shard(movies, tmp_path / "shards", StackOptions(axes="ZRYX"))
    assert shards.describe(0)["name"] == "a.tif/z00_r0"
    shards = shard(movies, tmp_path / "shards", StackOptions(channels="1"))
    assert [shards.describe(index)["name"] for index in range(2)] == ["a.tif/t00_c1", "a.tif/t01_c1"]
    assert len(shards) == 11


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_plane_is_stored_without_loss(dtype: str, channels: int) -> None:
    plane = values((20, 24, channels), dtype)
    decoded = decode_plane(encode_plane(plane))
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, plane)
    assert read_mode(mode_of(channels, dtype)) == (channels, dtype)


def test_bytes_that_are_no_plane_set_no_memory_aside() -> None:
    data = encode_plane(values((20, 24, 1), "uint16"))
    huge = data.replace(b"(20, 24, 1)", b"(999999, 9999999, 1)")[: len(data)]
    for broken in (huge, data[:-1], data[:30], data.replace(b"<u2", b"|O1"), b""):
        with pytest.raises(ValueError, match=r"plane|magic|buffer|header|descriptor"):
            decode_plane(broken)


def test_a_plane_that_is_not_what_its_index_says_is_damaged(movies: Path, tmp_path: Path) -> None:
    shards = shard(movies, tmp_path / "shards")
    shards.samples(0)  # its list is read from the disk

    class Lying:
        def read(self, file: object, offset: int, size: int) -> bytes:
            data = self.data + bytes(max(0, size - len(self.data)))
            stored = shards.samples(0)[0]["views"]["clean"]
            stored["crc32"] = zlib.crc32(data)
            return data

        def drop(self, file: object) -> bool:
            return False

    store = Lying()
    for store.data in (encode_plane(values((9, 9, 1), "float32")), b"\x93NUMPY\1\0"):
        lying = Shards(shards.name, shards.entries, shards.digest, store, shards.value_range, shards._lists)
        with pytest.raises(DamagedError, match=r"a\.tif/t00_c0"):
            lying.pixels(0)

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from denoise.data.shards import INDEX, DamagedError, Shards
from denoise.errors import UserError
from denoise.images.io import pixel_hash, read_image
from denoise.sharding.writer import write_shards
from pipelines.datasets.shard import find_sources

INJECTIONS = 200


def copy(shards: Path, target: Path) -> Path:
    return Path(shutil.copytree(shards, target))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_every_image_comes_back_by_index(small_images, small_shards):
    shards = Shards.open(small_shards)
    files = sorted(small_images.iterdir())
    assert len(shards) == len(files) == 5
    assert len(shards.entries) > 1
    for index, path in enumerate(files):
        pixels = read_image(path).pixels
        described = shards.describe(index)
        assert np.array_equal(shards.pixels(index), pixels)
        assert shards.encoded(index) == path.read_bytes()
        assert described["name"] == path.name
        view = described["views"]["clean"]
        assert (view["height"], view["width"]) == pixels.shape[:2]
        assert view["mode"] == ("L" if pixels.shape[2] == 1 else "RGB")
        assert view["pixels"] == pixel_hash(pixels)
    with pytest.raises(IndexError):
        shards.pixels(len(files))


# --- corruption: each function damages a folder of shards -----------------------------------------------------


def member_places(folder: Path, tar: str) -> list[int]:
    """Return where the members of a tar begin, and where the last one ends."""
    import tarfile

    with tarfile.open(folder / tar) as members:
        files = list(members)
    return [member.offset for member in files] + [files[-1].offset_data + -(-files[-1].size // 512) * 512]


def cut_at_a_member(folder, tar, rng):
    path = folder / tar
    path.write_bytes(path.read_bytes()[: rng.choice(member_places(folder, tar))])


def cut_inside_a_member(folder, tar, rng):
    path = folder / tar
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(1, len(data))])


def flip_in_a_header(folder, tar, rng):
    flip(folder / tar, rng.choice(member_places(folder, tar)[:-1]) + rng.randrange(512))


def flip_in_a_payload(folder, tar, rng):
    sample = rng.choice(json.loads((folder / tar).with_suffix(".json").read_text()))
    view = sample["views"]["clean"]
    flip(folder / tar, view["offset"] + rng.randrange(view["bytes"]))


def remove(folder, tar, rng):
    (folder / tar).unlink()


def exchange(folder, tar, rng):
    other = rng.choice([path for path in folder.glob("*.tar") if path.name != tar])
    (folder / tar).write_bytes(other.read_bytes())


def exchange_with_one_of_the_same_size(folder, tar, rng):
    size = (folder / tar).stat().st_size
    (folder / tar).write_bytes(rng.randbytes(size))


def damage_the_list(folder, tar, rng):
    path = (folder / tar).with_suffix(".json")
    flip(path, rng.randrange(path.stat().st_size))


def stale_index(folder, tar, rng):
    """The tars and lists are of another version than the index."""
    index = json.loads((folder / INDEX).read_text())
    entry = next(entry for entry in index["shards"] if entry["file"] == tar)
    entry[rng.choice(["sha256", "samples_sha256"])] = f"{rng.getrandbits(256):064x}"
    (folder / INDEX).write_text(json.dumps(index))


def wrong_count(folder, tar, rng):
    index = json.loads((folder / INDEX).read_text())
    next(entry for entry in index["shards"] if entry["file"] == tar)["samples"] += rng.choice([-1, 1])
    (folder / INDEX).write_text(json.dumps(index))


CORRUPTIONS = [
    cut_at_a_member, cut_inside_a_member, flip_in_a_header, flip_in_a_payload, remove, exchange,
    exchange_with_one_of_the_same_size, damage_the_list, stale_index, wrong_count,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(INJECTIONS))
def test_no_corruption_is_silent(small_shards, tmp_path, seed):
    rng = random.Random(seed)
    intact = Shards.open(small_shards)
    images = [intact.encoded(index) for index in range(len(intact))]
    folder = copy(small_shards, tmp_path / "shards")
    tar = rng.choice([entry["file"] for entry in intact.entries])
    corrupt = CORRUPTIONS[seed % len(CORRUPTIONS)]
    corrupt(folder, tar, rng)
    number = tar.removesuffix(".tar")
    with pytest.raises(DamagedError, match=number + "|" + INDEX):
        read_all(folder, images, rng)


def read_all(folder, images, rng):
    """Read every sample in random order; each that is returned must be one of the images."""
    shards = Shards.open(folder)
    for index in rng.sample(range(len(shards)), len(shards)):
        assert shards.encoded(index) in images


@pytest.mark.parametrize("seed", range(20))
def test_an_index_with_a_flipped_bit_is_an_error_or_harmless(small_shards, tmp_path, seed):
    intact = Shards.open(small_shards)
    images = [intact.encoded(index) for index in range(len(intact))]
    folder = copy(small_shards, tmp_path / "shards")
    flip(folder / INDEX, random.Random(seed).randrange((folder / INDEX).stat().st_size))
    with suppress(UserError):
        shards = Shards.open(folder)
        assert shards.digest != intact.digest  # a run that was started on the other index refuses it
        assert [shards.encoded(index) for index in range(len(images))] == images


def test_bytes_that_change_after_the_check_are_detected(small_shards, tmp_path):
    folder = copy(small_shards, tmp_path / "shards")
    shards = Shards.open(folder)
    assert shards.pixels(0).size
    flip(folder / "000000.tar", shards.describe(0)["views"]["clean"]["offset"] + 100)
    with pytest.raises(DamagedError, match=r"000000\.tar has changed since"):
        shards.pixels(0)


def test_shards_beside_a_damaged_one_can_be_read(small_shards, tmp_path):
    folder = copy(small_shards, tmp_path / "shards")
    flip(folder / "000000.tar", 600)
    shards = Shards.open(folder)
    with pytest.raises(DamagedError, match=r"000000\.tar has another sha256"):
        shards.pixels(0)
    assert shards.pixels(4).size


def test_a_missing_or_invalid_index_is_an_error(tmp_path):
    with pytest.raises(UserError, match="denoise shard NAME"):
        Shards.open(tmp_path)
    for text in ("{}", "[]", "no JSON", '{"format": 2, "shards": [{"file": "../../etc/passwd"}]}'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(DamagedError, match=r"not an index|describe no shard"):
            Shards.open(tmp_path)
    (tmp_path / INDEX).write_text('{"format": 1, "shards": []}')
    with pytest.raises(UserError, match="format 1, expected 2"):
        Shards.open(tmp_path)


def test_few_files_stay_open_however_many_shards_there_are(small_images, tmp_path, monkeypatch):
    monkeypatch.setattr("denoise.data.shards.MAX_OPEN_FILES", 2)
    write_shards(tmp_path / "shards", find_sources(small_images), max_bytes=1)
    shards = Shards.open(tmp_path / "shards")
    assert len(shards.entries) == 5
    for index in (0, 1, 2, 3, 4, 0, 3):
        assert shards.encoded(index)
    open_files = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert len([path for path in open_files if path.is_relative_to(tmp_path)]) <= 2


def test_a_list_that_changes_after_the_check_is_detected(small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("denoise.data.shards.MAX_LISTS", 1)
    folder = copy(small_shards, tmp_path / "shards")
    shards = Shards.open(folder)
    shards.samples(0), shards.samples(1)
    flip(folder / "000000.json", 30)
    with pytest.raises(DamagedError, match=r"000000\.json has another sha256"):
        shards.samples(0)

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from denoise.errors import UserError
from denoise.files import file_digest
from denoise.images import Picture, pixel_hash, read_picture, write_picture
from denoise.shards import INDEX, Shards, Source, write_shards
from pipelines.shard import find_sources


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def copy(shards: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(shards, target))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_every_picture_comes_back_by_index(small_pictures, small_shards):
    shards = Shards.open(small_shards)
    files = sorted(small_pictures.iterdir())
    assert len(shards) == len(files) == 5
    assert len(shards.entries) > 1
    for index, path in enumerate(files):
        pixels = read_picture(path).pixels
        described = shards.describe(index)
        assert np.array_equal(shards.pixels(index), pixels)
        assert described["name"] == path.name
        view = described["views"]["clean"]
        assert (view["height"], view["width"]) == pixels.shape[:2]
        assert view["mode"] == ("L" if pixels.shape[2] == 1 else "RGB")
        assert view["pixels"] == pixel_hash(pixels)
    with pytest.raises(IndexError):
        shards.pixels(len(files))


def test_the_original_bytes_are_kept(small_pictures, small_shards):
    members = {}
    for path in sorted(small_shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}
    files = sorted(small_pictures.iterdir())
    assert [members[f"{i:09d}{path.suffix}"] for i, path in enumerate(files)] == [path.read_bytes() for path in files]
    assert [json.loads(members[f"{i:09d}.json"])["name"] for i in range(5)] == [path.name for path in files]


def test_any_webdataset_program_reads_them(small_pictures, small_shards):
    import webdataset

    urls = [str(path) for path in sorted(small_shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    files = sorted(small_pictures.iterdir())
    assert [sample["json"]["name"] for sample in samples] == [path.name for path in files]
    first = read_picture(files[0]).pixels
    assert np.array_equal(samples[0]["png"], first)


def test_the_same_pictures_give_the_same_bytes(small_pictures, small_shards, tmp_path):
    code = (
        "import os, sys, pathlib; os.umask(0o077)\n"
        "from denoise.shards import write_shards; from pipelines.shard import find_sources\n"
        "write_shards(pathlib.Path(sys.argv[2]), find_sources(pathlib.Path(sys.argv[1])), 40_000)"
    )
    elsewhere = copy(small_pictures, tmp_path / "copied")
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, elsewhere, tmp_path / "again"], check=True, env=environment)
    assert digests(tmp_path / "again") == digests(small_shards)


def test_real_pairs_are_one_sample(small_pictures, tmp_path):
    pictures = sorted(small_pictures.iterdir())
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "cup_real.png").write_bytes(pictures[0].read_bytes())
    mean = Picture(read_picture(pictures[0]).pixels // 2)
    write_picture(tmp_path / "raw" / "cup_mean.png", mean)
    write_shards(tmp_path / "shards", find_sources(tmp_path / "raw"), 1 << 20)
    shards = Shards.open(tmp_path / "shards")
    assert len(shards) == 1
    assert shards.describe(0)["name"] == "cup.png"
    assert np.array_equal(shards.pixels(0, "noisy"), read_picture(pictures[0]).pixels)
    assert np.array_equal(shards.pixels(0, "mean"), mean.pixels)


def test_a_flipped_byte_is_found_before_it_is_read(small_shards, tmp_path):
    folder = copy(small_shards, tmp_path / "shards")
    place = Shards.open(folder).describe(0)["views"]["clean"]["offset"] + 100
    flip(folder / "000000.tar", place)
    shards = Shards.open(folder)
    with pytest.raises(UserError, match=r"000000\.tar has another sha256"):
        shards.pixels(0)
    assert shards.pixels(4).size  # the other shards are sound


@pytest.mark.parametrize("cut", [100, 512, 1024, 10240])
def test_a_shard_that_was_cut_short_is_found(small_shards, tmp_path, cut):
    folder = copy(small_shards, tmp_path / "shards")
    path = folder / "000000.tar"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"000000\.tar has \d+ bytes instead of \d+"):
        Shards.open(folder)


def test_a_missing_shard_and_a_foreign_list_are_found(small_shards, tmp_path):
    folder = copy(small_shards, tmp_path / "shards")
    flip(folder / "000000.json", 40)
    with pytest.raises(UserError, match=r"000000\.json"):
        Shards.open(folder).describe(0)
    (folder / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar is missing"):
        Shards.open(folder)


def test_no_shards_and_no_index_are_told(tmp_path):
    with pytest.raises(UserError, match="denoise shard NAME"):
        Shards.open(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(UserError, match="not an index"):
        Shards.open(tmp_path)


def test_a_broken_picture_is_named_and_left_out_only_if_asked_to(small_pictures, tmp_path):
    raw = copy(small_pictures, tmp_path / "raw")
    broken = raw / "2-coins.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"2-coins\.png"):
        write_shards(tmp_path / "shards", find_sources(raw), 1 << 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    skipped = write_shards(tmp_path / "shards", find_sources(raw), 1 << 20, skip_broken=True)
    assert len(skipped) == 1
    assert "2-coins.png" in skipped[0]
    assert len(Shards.open(tmp_path / "shards")) == 4


def test_a_failed_rewrite_leaves_the_old_shards(small_pictures, small_shards, tmp_path):
    folder = copy(small_shards, tmp_path / "shards")
    before = digests(folder)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError):
        write_shards(folder, [Source("broken.png", {"clean": broken})], 1 << 20)
    with pytest.raises(UserError, match="no pictures"):
        write_shards(folder, [], 1 << 20)
    assert digests(folder) == before


def test_a_tar_can_be_unpacked_by_tar(small_shards, tmp_path):
    listed = subprocess.run(["tar", "tf", small_shards / "000000.tar"], capture_output=True, text=True, check=True)
    assert listed.stdout.split()[:2] == ["000000000.json", "000000000.png"]
    assert io.StringIO(listed.stdout).readline()

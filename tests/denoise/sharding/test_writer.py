import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denoise.data.shards import INDEX, Shards
from denoise.errors import UserError
from denoise.files import file_digest
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.sharding.plan import SampleFilter, Source, plan_shards
from denoise.sharding.writer import write_shards
from pipelines.datasets.shard import find_sources

WRITE = (
    "import os, sys, pathlib\n"
    "if __name__ == '__main__':\n"
    "    from denoise.sharding.writer import write_shards\n"
    "    from pipelines.datasets.shard import find_sources\n"
    "    os.umask(int(sys.argv[4], 8))\n"
    "    images, target = map(pathlib.Path, sys.argv[1:3])\n"
    "    write_shards(target, find_sources(images), 40_000, jobs=int(sys.argv[3]))\n"
)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def copy(shards: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(shards, target))


def shard_elsewhere(script: Path, images: Path, target: Path, jobs: int, **environment: str) -> None:
    """Shard in another process: with so many of its own, another umask, and what the environment says."""
    script.write_text(WRITE)
    arguments = [sys.executable, script, images, target, str(jobs), "077"]
    subprocess.run(arguments, check=True, env={**os.environ, **environment})


def test_the_original_bytes_are_kept(small_images, small_shards):
    members = {}
    for path in sorted(small_shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}
    images = {name: data for name, data in members.items() if not name.endswith(".json")}
    files = sorted(small_images.iterdir())
    assert [images[name] for name in sorted(images)] == [path.read_bytes() for path in files]
    described = [json.loads(members[name])["name"] for name in sorted(members) if name.endswith(".json")]
    assert described == [path.name for path in files]


def test_any_webdataset_program_reads_them(small_images, small_shards):
    import webdataset

    urls = [str(path) for path in sorted(small_shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    files = sorted(small_images.iterdir())
    assert [sample["json"]["name"] for sample in samples] == [path.name for path in files]
    assert np.array_equal(samples[0]["png"], read_image(files[0]).pixels)


def test_a_tar_can_be_unpacked_by_tar(small_shards, tmp_path):
    subprocess.run(["tar", "xf", small_shards / "000000.tar", "-C", tmp_path], check=True)
    assert sorted(path.name for path in tmp_path.iterdir())[:2] == ["000000000000.json", "000000000000.png"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_same_images_give_the_same_bytes(small_images, small_shards, tmp_path, jobs):
    elsewhere = copy(small_images, tmp_path / "copied")
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
    there = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    shard_elsewhere(tmp_path / "write.py", elsewhere, tmp_path / "again", jobs, **there)
    assert digests(tmp_path / "again") == digests(small_shards)


def test_shards_are_cut_by_the_sizes_of_files(small_images):
    sources = list(find_sources(small_images))
    sizes = [source.views["clean"].stat().st_size for source in sources]
    shards = list(plan_shards(sources, sizes[0] + 1))
    assert [source for shard in shards for source in shard.sources] == sources
    assert len(shards[0].sources) == 2
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert len(list(plan_shards(sources, 1))) == len(sources)


def test_an_interrupted_run_resumes(small_images, small_shards, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(result):
        if result.number == 0:
            raise Interrupted

    folder = tmp_path / "shards"
    with pytest.raises(Interrupted):
        write_shards(folder, find_sources(small_images), 40_000, on_shard_written=stop)
    assert not folder.exists()
    results = write_shards(folder, find_sources(small_images), 40_000)
    assert [result.reused for result in results] == [True, False]
    assert digests(folder) == digests(small_shards)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


@pytest.mark.parametrize("harm", ["tar", "list", "image", "filter", "note"])
def test_what_an_interrupted_run_left_is_checked(small_images, tmp_path, harm):
    images, folder, sample_filter = copy(small_images, tmp_path / "images"), tmp_path / "shards", SampleFilter()

    def stop(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, find_sources(images), 40_000, on_shard_written=stop)
    left = {"tar": "000000.tar", "list": "000000.json", "note": "000000.done"}.get(harm)
    if left:
        path = tmp_path / ".shards.partial" / left
        path.write_bytes(path.read_bytes()[:-3])
    elif harm == "image":
        first = min(images.iterdir())
        write_image(first, DecodedImage(255 - read_image(first).pixels))
    else:
        sample_filter = SampleFilter(max_side=10_000)
    results = write_shards(folder, find_sources(images), 40_000, sample_filter)
    assert not results[0].reused
    write_shards(tmp_path / "fresh", find_sources(images), 40_000, sample_filter)
    assert digests(folder) == digests(tmp_path / "fresh")


def test_two_runs_at_once_are_refused(small_images, tmp_path):
    def again(result):
        write_shards(tmp_path / "shards", find_sources(small_images), 40_000)

    with pytest.raises(UserError, match="another process is sharding"):
        write_shards(tmp_path / "shards", find_sources(small_images), 40_000, on_shard_written=again)


def test_images_are_left_out_for_their_size_and_colour(small_images, tmp_path):
    def names(**fields):
        write_shards(tmp_path / "shards", find_sources(small_images), 1 << 20, SampleFilter(**fields))
        shards = Shards.open(tmp_path / "shards")
        return [shards.describe(index)["name"][0] for index in range(len(shards))]

    assert names() == ["0", "1", "2", "3", "4"]
    assert names(only="grey") == ["2", "4"]
    assert names(only="colour") == ["0", "1", "3"]
    assert names(min_side=98) == ["2", "3", "4"]  # they are 96, 97, ... pixels high
    assert names(min_side=97, max_side=128) == ["1", "2", "3", "4"]
    with pytest.raises(UserError, match="no images"):
        names(max_side=127)


def test_a_shard_that_holds_nothing_is_left_out(small_images, tmp_path):
    write_shards(tmp_path / "shards", find_sources(small_images), 1, SampleFilter(only="grey"))
    shards = Shards.open(tmp_path / "shards")
    assert [entry["file"] for entry in shards.entries] == ["000002.tar", "000004.tar"]
    assert shards.counts == (1, 1)
    assert sorted(path.suffix for path in (tmp_path / "shards").iterdir()) == [".json"] * 3 + [".tar"] * 2


def test_real_pairs_are_one_sample(small_images, tmp_path):
    images = sorted(small_images.iterdir())
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "cup_real.png").write_bytes(images[0].read_bytes())
    mean = DecodedImage(read_image(images[0]).pixels // 2)
    write_image(tmp_path / "raw" / "cup_mean.png", mean)
    write_shards(tmp_path / "shards", find_sources(tmp_path / "raw"), 1 << 20)
    shards = Shards.open(tmp_path / "shards")
    assert len(shards) == 1
    assert shards.describe(0)["name"] == "cup.png"
    assert np.array_equal(shards.pixels(0, "noisy"), read_image(images[0]).pixels)
    assert np.array_equal(shards.pixels(0, "mean"), mean.pixels)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_broken_image_is_named_and_left_out_only_if_asked_to(small_images, tmp_path, jobs):
    raw = copy(small_images, tmp_path / "raw")
    broken = raw / "2-coins.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"2-coins\.png"):
        write_shards(tmp_path / "shards", find_sources(raw), 1 << 20, jobs=jobs)
    assert not (tmp_path / "shards").exists()
    results = write_shards(tmp_path / "shards", find_sources(raw), 1 << 20, SampleFilter(skip_broken=True), jobs)
    (sentence,) = [sentence for result in results for sentence in result.errors]
    assert "2-coins.png" in sentence
    assert len(Shards.open(tmp_path / "shards")) == 4


def test_a_huge_file_that_is_no_image_is_not_read_into_memory(small_images, tmp_path):
    huge = tmp_path / "huge.png"
    for start in (b"", min(small_images.glob("*.png")).read_bytes()):
        huge.write_bytes(start)
        os.truncate(huge, 1 << 40)
        with pytest.raises(UserError, match=r"huge\.png"):
            write_shards(tmp_path / "shards", [Source("huge.png", {"clean": huge})], 1 << 20)


def test_a_failed_rewrite_leaves_the_old_shards(small_shards, tmp_path):
    folder = copy(small_shards, tmp_path / "shards")
    before = digests(folder)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError):
        write_shards(folder, [Source("broken.png", {"clean": broken})], 1 << 20)
    with pytest.raises(UserError, match="no images"):
        write_shards(folder, [], 1 << 20)
    assert digests(folder) == before
    assert (folder / INDEX).is_file()


def test_images_of_every_kind_come_back_as_they_are_read(photographs, tmp_path):
    """Also those that the quick decoder would read differently: turned by EXIF, palette, alpha, 16 bits, CMYK."""
    with Image.open(photographs / "chelsea.png") as opened:
        image = opened.convert("RGB").crop((0, 0, 96, 64))
    turned = Image.Exif()
    turned[274] = 6
    folder = tmp_path / "raw"
    folder.mkdir()
    image.save(folder / "0-plain.jpg", quality=90)
    image.save(folder / "1-turned.jpg", exif=turned)
    image.convert("CMYK").save(folder / "2-cmyk.jpg")
    image.convert("P").save(folder / "3-palette.png")
    image.convert("RGBA").save(folder / "4-alpha.png")
    image.convert("L").save(folder / "5-grey.jpg")
    write_image(folder / "6-deep.png", DecodedImage(np.asarray(image).astype(np.uint16) * 257))
    write_shards(tmp_path / "shards", find_sources(folder), 1 << 20)
    shards = Shards.open(tmp_path / "shards")
    for index, path in enumerate(sorted(folder.iterdir())):
        assert np.array_equal(shards.pixels(index), read_image(path).pixels), path.name
    quick = [shards.describe(index)["views"]["clean"]["quick"] for index in range(len(shards))]
    assert (quick[0], quick[1], quick[5], quick[6]) == (True, False, True, False)

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.files import file_digest
from denoise.sharding.plan import SampleFilter
from pipelines.datasets.shard import find_sources, shard


def test_a_folder_of_the_user_is_sharded_in_a_stable_order(small_images, tmp_path):
    own = tmp_path / "own"
    (own / "b").mkdir(parents=True)
    (own / "a").mkdir()
    images = sorted(small_images.iterdir())
    shutil.copy(images[0], own / "b" / "1.png")
    shutil.copy(images[1], own / "a" / "2.JPG")
    (own / "notes.txt").write_text("not an image")
    (own / ".hidden.png").write_bytes(b"")
    assert [source.name for source in find_sources(own)] == ["a/2.JPG", "b/1.png"]
    folder = shard("own", "train", tmp_path / "data", own)
    assert folder == tmp_path / "data" / "shards" / "train" / "own"
    assert [Shards.open(folder).describe(index)["name"] for index in (0, 1)] == ["a/2.JPG", "b/1.png"]


def test_images_of_one_scene_are_one_sample(small_images, tmp_path):
    image = next(small_images.glob("*.png"))
    names = ["a_noisy", "a_noisy2", "a_clean", "deep/b_real", "deep/b_mean", "c", "c_clean", "d_noisy"]
    for name in names:
        (tmp_path / f"{name}.png").parent.mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / f"{name}.png")
    samples = {
        source.name: {view: path.stem for view, path in source.views.items()} for source in find_sources(tmp_path)
    }
    assert samples == {
        "a.png": {"noisy": "a_noisy", "noisy2": "a_noisy2", "clean": "a_clean"},
        "c.png": {"clean": "c"},  # a name that says nothing makes no pair
        "c_clean.png": {"clean": "c_clean"},
        "d_noisy.png": {"clean": "d_noisy"},  # a lone image
        "deep/b.png": {"noisy": "b_real", "mean": "b_mean"},
    }


def scenes(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return {source.name: {view: path.name for view, path in source.views.items()} for source in find_sources(folder)}


def test_views_of_a_scene_may_differ_in_case_and_format(tmp_path):
    assert scenes(tmp_path / "format", "a_noisy.png", "a_clean.tif") == {
        "a.png": {"noisy": "a_noisy.png", "clean": "a_clean.tif"}
    }
    assert scenes(tmp_path / "case", "a_noisy.png", "A_CLEAN.PNG", "b_Noisy.jpg", "b_noisy2.JPG") == {
        "a.png": {"noisy": "a_noisy.png", "clean": "A_CLEAN.PNG"},
        "b.jpg": {"noisy": "b_Noisy.jpg", "noisy2": "b_noisy2.JPG"},
    }
    assert scenes(tmp_path / "normal", "é_noisy.png", "e\u0301_clean.png") == {
        "é.png": {"noisy": "é_noisy.png", "clean": "e\u0301_clean.png"}
    }
    both = ("a_noisy.png", "a_clean.png", "a_noisy.tif", "a_clean.tif")  # as ever: by the whole rest of the name
    assert scenes(tmp_path / "both", *both) == {
        "a.png": {"noisy": "a_noisy.png", "clean": "a_clean.png"},
        "a.tif": {"noisy": "a_noisy.tif", "clean": "a_clean.tif"},
    }


def test_what_could_be_two_files_for_one_view_makes_no_pair(tmp_path):
    for number, names in enumerate(
        [
            ("a_noisy.png", "A_noisy.png", "a_clean.tif"),
            ("a_noisy.png", "a_real.png", "a_clean.png"),
            ("a_noisy.png", "a.png"),
            ("_noisy.png", "_clean.png"),
        ]
    ):
        found = scenes(tmp_path / str(number), *names)
        assert found == {name: {"clean": name} for name in names}


@pytest.mark.parametrize(
    ("names", "lone"),
    [
        (("s0_noisy.png", "s0_clean.png"), ()),
        (("s0_noisy.png", "s1_clean.png"), ("s0_noisy.png", "s1_clean.png")),
        (("a_noisy.png", "a.png"), ("a_noisy.png",)),
        (("a\x1b[2J\n_noisy.png", "b.png"), (r"a\x1b[2J\n_noisy.png",)),
    ],
)
def test_a_view_without_a_partner_is_named(small_images, tmp_path, capsys, names, lone):
    (tmp_path / "own").mkdir()
    for name in names:
        shutil.copy(next(small_images.glob("*.png")), tmp_path / "own" / name)
    shard("own", "train", tmp_path, tmp_path / "own")
    shown = capsys.readouterr().err
    assert ("no partner" in shown) == bool(lone)
    assert all(name in shown for name in lone)
    assert "\x1b" not in shown


def test_names_that_are_no_text_are_sharded(small_images, tmp_path):
    own = tmp_path / "own"
    (own / os.fsdecode(b"\xff")).mkdir(parents=True)
    names = [b"caf\xe9_noisy.png", b"caf\xe9_clean.png", b"\xff/\xe9.png", b"m" * 246 + b".png", b"-x.png", b"a\nb.png"]
    for name in names:
        shutil.copy(next(small_images.glob("*.png")), own / os.fsdecode(name))
    (own / "back").symlink_to(own)
    (own / "itself.png").symlink_to(own / "itself.png")
    shards = Shards.open(shard("own", "train", tmp_path, own))
    found = [shards.describe(index)["name"] for index in range(len(shards))]
    assert found == ["-x.png", "a\nb.png", r"caf\xe9.png", "m" * 246 + ".png", r"\xff/\xe9.png"]
    assert all(name.encode() for name in found)


def test_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="denoise fetch kodak"):
        shard("kodak", "test", tmp_path)
    with pytest.raises(UserError, match="folder of images"):
        shard("own", "train", tmp_path, tmp_path / "nowhere")


def test_a_broken_image_is_left_out_and_counted(small_images, tmp_path, capsys):
    own = shutil.copytree(small_images, tmp_path / "own")
    (own / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"broken\.png"):
        shard("own", "train", tmp_path, own)
    shard("own", "train", tmp_path, own, sample_filter=SampleFilter(skip_broken=True))
    errors = capsys.readouterr().err
    assert "broken.png" in errors
    assert "1 of 6 images were left out" in errors


@pytest.mark.parametrize("name", ["kodak", "bsds300", "bsd68", "polyu"])
def test_named_sets_from_a_mirror(mirror, tmp_path, name):
    from pipelines.datasets.fetch import fetch

    counts = {"kodak": 24, "bsds300": 100, "bsd68": 68, "polyu": 30}
    fetch(name, tmp_path, splits=["test"], mirror=mirror)
    shards = Shards.open(shard(name, "test", tmp_path, shard_mb=2))
    assert len(shards) == counts[name]
    views = {view for index in (0, len(shards) - 1) for view in shards.describe(index)["views"]}
    assert views == ({"noisy", "mean"} if name == "polyu" else {"clean"})
    assert all(shards.pixels(0, view).size for view in views)


SHARD = """\
import os, sys
from pathlib import Path
if __name__ == "__main__":
    from pipelines.datasets.shard import shard
    os.umask(0o077)
    shard(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), shard_mb=1, jobs=2)
"""
ALL_SETS = {
    "kodak": "kodak",
    "bsds300-train": "BSDS300/images/train",
    "bsds300-test": "BSDS300/images/test",
    "bsd400": "bsd400",
    "bsd68": "bsd68",
    "cbsd68": "cbsd68",
    "imagenet-train": "imagenet/train",
    "imagenet-val": "imagenet/val",
    "polyu-train": "polyu/train",
    "polyu-test": "polyu/test",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("kodak", "polyu-test") else pytest.mark.slow) for name in ALL_SETS]
)
def test_every_set_gives_the_same_bytes_every_time(mirror, tmp_path, name):
    """By one process here, and by two with another umask, time zone and locale."""
    source = mirror / ALL_SETS[name]
    first = shard(name, "train", tmp_path / "one", source, shard_mb=1)
    (tmp_path / "again.py").write_text(SHARD)
    there = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    arguments = [sys.executable, tmp_path / "again.py", name, "train", tmp_path / "two", source]
    subprocess.run(arguments, check=True, env=there)
    second = tmp_path / "two" / "shards" / "train" / name
    assert len(list(first.glob("*.tar"))) > 1
    assert {path.name: file_digest(path) for path in first.iterdir()} == {
        path.name: file_digest(path) for path in second.iterdir()
    }


def test_stacks_that_are_named_like_views_make_no_pair_and_are_named(tmp_path, capsys):
    (tmp_path / "own").mkdir()
    for view in ("noisy", "clean"):
        np.save(tmp_path / "own" / f"cells_{view}.npy", np.random.default_rng(0).random((3, 24, 32), np.float32))
    shard("own", "train", tmp_path, tmp_path / "own")
    told = capsys.readouterr().err
    assert "2 images are named like a view of a scene but have no partner" in told
    assert "cells_noisy.npy/z0" in told
    assert "are 0 and 1 for a network" in told

"""Sets made of the images of others: the centres of images, and a part of them for validation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denoise.config import Config, Data
from denoise.errors import UserError
from denoise.images.io import DecodedImage, write_image
from denoise.sharding.plan import SampleFilter
from pipelines.cli.prepare import Derivation
from pipelines.cli.prepare import shard as shard_command
from pipelines.datasets.derive import derive
from pipelines.datasets.layout import open_set, shard_folder
from pipelines.datasets.shard import shard


def pixels(number, height=24, width=20, channels=3):
    return np.random.default_rng(number).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Images of 24x20 pixels: nine in colour, one grey, one on its side, a pair; and one that is small."""
    own = tmp_path / "own"
    own.mkdir()
    for number in range(9):
        write_image(own / f"{number}.png", DecodedImage(pixels(number)))
    write_image(own / "grey.png", DecodedImage(pixels(10, channels=1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels(11, 20, 24)).save(own / "turned.png", exif=exif)
    for view in ("noisy", "clean"):
        write_image(own / f"pair_{view}.png", DecodedImage(pixels(len(view))))
    write_image(own / "small.png", DecodedImage(pixels(12, 24, 15)))
    return own


@pytest.fixture
def config(tmp_path, folder):
    shard("own", "test", tmp_path, folder)
    return Config(data=Data(root=str(tmp_path)))


def contents(shards):
    return {
        (sample["name"], view): shards.pixels(index, view)
        for index in range(len(shards))
        for sample in [shards.describe(index)]
        for view in sample["views"]
    }


def test_a_cut_is_the_centre_of_each_image_that_is_large_enough(config, capsys):
    derive(config, "cut", Derivation("own/test", "val", 16, None))
    source, cut = contents(open_set(config, "test", "own")), contents(open_set(config, "val", "cut"))
    assert source.keys() - cut.keys() == {("small.png", "clean")}
    assert "1 of 13 images of own/test were left out" in capsys.readouterr().err
    assert ("pair.png", "noisy") in cut
    for name, image in cut.items():
        assert np.array_equal(image, source[name][4:20, 2:18])
    assert cut["grey.png", "clean"].shape == (16, 16, 1)
    assert not list(Path(config.data.root, "partial").rglob("*.png"))


def test_a_share_becomes_the_val_split_evenly_spread(config):
    derive(config, "halves", Derivation("own/test", "train", None, 0.275))
    train, val = (contents(open_set(config, split, "halves")) for split in ("train", "val"))
    source = contents(open_set(config, "test", "own"))
    assert [name for name, _ in val] == ["3.png", "7.png", "pair.png", "pair.png"]  # of 13, evenly
    assert source.keys() == train.keys() | val.keys()
    assert len(train) + len(val) == len(source)
    source_shards, val_shards = open_set(config, "test", "own"), open_set(config, "val", "halves")
    assert val_shards.encoded(0) == source_shards.encoded(3)  # a whole image keeps its bytes


def test_a_set_is_made_once_and_made_anew_when_its_source_changes(config, folder, tmp_path):
    derivation = Derivation("own/test", "train", 16, 0.2)
    derive(config, "cut", derivation)
    index = shard_folder(tmp_path, "train", "cut") / "index.json"
    first, digest = index.stat().st_ino, open_set(config, "train", "cut").digest
    derive(config, "cut", derivation)
    assert index.stat().st_ino == first
    record = tmp_path / "derived/train/cut.json"
    made = json.loads(record.read_text())
    record.write_text(json.dumps({**made, "made": dict.fromkeys(made["made"])}))  # as after a kill
    derive(config, "cut", derivation)
    assert json.loads(record.read_text()) == made
    (folder / "0.png").unlink()
    shard("own", "test", tmp_path, folder)
    derive(config, "cut", derivation)
    assert open_set(config, "train", "cut").digest != digest
    shutil.rmtree(shard_folder(tmp_path, "test", "own"))
    first = index.stat().st_ino
    derive(config, "cut", derivation)  # nothing is there to compare with
    assert index.stat().st_ino == first


def test_limits_are_those_of_the_source(config):
    derive(config, "grey", Derivation("own/test", "train", 16, None), SampleFilter(min_side=20, only="grey"))
    assert [*contents(open_set(config, "train", "grey"))] == [("grey.png", "clean")]


def test_another_set_of_that_name_stays(config, folder, tmp_path):
    shard("mine", "train", tmp_path, folder)
    with pytest.raises(UserError, match="holds another set of that name, which would be lost"):
        derive(config, "mine", Derivation("own/test", "train", 16, None))


@pytest.mark.parametrize(
    ("derivation", "message"),
    [
        (Derivation("own", "train", 16, None), "say which split of own .* for example own/test"),
        (Derivation("own/val", "train", 16, None), "the val split of own is not in .*--from FOLDER --split val"),
        (Derivation("own/test", "test", None, 0.2), "leaves the rest for training"),
        (Derivation("own/test", "train", None, 1.0), "leaves the rest for training"),
        (Derivation("own/test", "train", None, 0.01), "no image of own/test is left for the val split"),
        (Derivation("own/test", "train", 30, None), r"no image of own/test is left for the train split \(it has 13\)"),
        (Derivation("x/test", "train", 16, None), "a set cannot be made of itself"),
        (Derivation("kodka/test", "train", 16, None), "did you mean kodak"),
    ],
)
def test_what_cannot_be_made_is_said_and_leaves_nothing(config, tmp_path, derivation, message):
    with pytest.raises(UserError, match=message):
        derive(config, "x", derivation)
    assert not (tmp_path / "derived").exists()
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["test"]


def test_at_a_url_nothing_is_derived(config, tmp_path):
    there = Config(data=Data(root=str(tmp_path / "here"), url=str(tmp_path / "shards")))
    derive(config, "cut", Derivation("own/test", "train", 16, None))
    derive(there, "cut", Derivation("own/test", "train", 16, None))
    with pytest.raises(UserError, match=r"cut is not at .* \(a derived set is made without data.url\)"):
        derive(there, "cut", Derivation("own/test", "val", 16, None))
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cut": 16}, "name that with --from-set"),
        ({"from_set": "own/test", "names": None}, "needs exactly one NAME"),
        ({"from_set": "own/test", "source": "own"}, "name two sources"),
        ({"from_set": "own/test", "axes": "TYX"}, "have been read"),
        ({"from_set": "own/test", "split": "tset"}, "did you mean test"),
        ({"from_set": "own/test", "names": ["x/val"], "split": "test"}, "names two splits"),
    ],
)
def test_the_command_says_what_does_not_fit(arguments, message):
    with pytest.raises(UserError, match=message):
        shard_command(**{"names": ["x"], **arguments})


def test_the_command_makes_the_set(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shard_command(names=["x/val"], from_set="own/test", cut=16, only="grey", settings=[f"data.root={tmp_path}"])
    assert [*contents(open_set(config, "val", "x"))] == [("grey.png", "clean")]

"""EE-559's two files: read as tensors and as nothing else."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from denoise.config import load_config
from denoise.data.dataset import ShardedDataset
from denoise.data.samples import evaluation_pair, open_samples
from denoise.data.shards import Shards
from denoise.errors import UsageError, UserError
from denoise.methods import build_method
from denoise.noise import parse_noise
from denoise.rng import batch_rng
from pipelines.cli.prepare import shard as shard_command
from pipelines.datasets.layout import open_set
from pipelines.datasets.tensor_pairs import read_pair

NAMES = {"train": "train_data.pkl", "val": "val_data.pkl"}


def images(seed, count=5, side=24):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """The folder of the course's files; the older of torch's two formats is read, too."""
    folder = tmp_path / "course"
    folder.mkdir()
    torch.save((images(0), images(1)), folder / NAMES["train"])
    torch.save([images(2), images(3)], folder / NAMES["val"], _use_new_zipfile_serialization=False)
    monkeypatch.chdir(tmp_path)
    return folder


def opened(split):
    return Shards.open(Path("data/shards", split, "ee559"))


def test_the_files_become_pairs_to_train_and_to_score_on(course):
    shard_command(names=["ee559"], source=course)
    train, val = opened("train"), opened("val")
    assert [sample["name"] for sample in val.samples(0)] == [f"0000{number}.png" for number in range(5)]
    for shards, (first, second), view in ((train, (0, 1), "noisy2"), (val, (2, 3), "clean")):
        for index in range(5):
            assert torch.equal(torch.tensor(shards.pixels(index, "noisy")).permute(2, 0, 1), images(first)[index])
            assert torch.equal(torch.tensor(shards.pixels(index, view)).permute(2, 0, 1), images(second)[index])
    none = parse_noise("none")
    config = load_config(None, ["noise=none", "method=n2n"])
    samples = open_samples(config, ShardedDataset([train]), build_method("n2n", {}, none), none)
    assert {"noisy", "noisy2"} <= set(samples[0])
    assert "clean" not in samples[0]
    pair = evaluation_pair(ShardedDataset([val]), 1, none, 3, batch_rng(0, 0, torch.tensor([1])))
    assert torch.equal(pair.clean[0], images(3)[1] / 255)
    assert torch.equal(pair.noisy[0], images(2)[1] / 255)
    digests = train.digest, val.digest
    shard_command(names=["ee559"], source=course)
    assert digests == (opened("train").digest, opened("val").digest)


def test_one_file_becomes_the_split_that_is_named(course):
    shard_command(names=["ee559"], source=course / NAMES["val"], split="test")
    assert set(opened("test").describe(0)["views"]) == {"noisy", "clean"}
    shard_command(names=["ee559"], source=course, split="train")
    with pytest.raises(UserError, match="val split of ee559 is not in .* EE-559 .*`denoise shard ee559 --from FOLDER`"):
        open_set(load_config(), "val", "ee559")
    assert not Path("data/shards/val").exists()
    (course / NAMES["val"]).rename(course / "other.pkl")
    with pytest.raises(UsageError, match="say what the images of .*other.pkl become"):
        shard_command(names=["ee559"], source=course / "other.pkl")
    with pytest.raises(UsageError, match=r"holds train_data.pkl \(train\), and nothing for --split val"):
        shard_command(names=["ee559"], source=course, split="val")
    with pytest.raises(UsageError, match="leave out --min-side"):
        shard_command(names=["ee559"], source=course, min_side=4)


class Harmful:
    """What makes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_but_tensors_is_unpickled(course, legacy):
    for content in ((images(0), Harmful()), Harmful()):
        torch.save(content, course / "bad.pkl", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match="was not read, and nothing in it was run"):
            read_pair(course / "bad.pkl")
    (course / "bad.pkl").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="nothing in it was run"):
        read_pair(course / "bad.pkl")
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("content", "described"),
    [
        ((images(0).float(), images(1).float()), r"2 things \(a float32 tensor 5x3x24x24, a float32"),
        ((images(0), images(1, 4)), r"2 things \(a uint8 tensor 5x3x24x24, a uint8 tensor 4x3x24x24\)"),
        ((images(0),), r"1 things \(a uint8 tensor"),
        ({"a": images(0)}, "a dict"),
        (images(0), "a uint8 tensor 5x3x24x24"),
        ((images(0)[:, :2], images(1)[:, :2]), "a uint8 tensor 5x2x24x24"),
        ((images(0)[:1].expand(10**9, 3, 24, 24),) * 2, "speaks of 1000000000 images"),
    ],
)
def test_what_is_no_pair_of_images_is_described(tmp_path, content, described):
    torch.save(content, tmp_path / "data.pkl")
    with pytest.raises(UserError, match=described) as caught:
        read_pair(tmp_path / "data.pkl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"no pickle", b"\x80\x02]q\x00."])
def test_a_file_that_is_none_is_refused(tmp_path, data):
    (tmp_path / "data.pkl").write_bytes(data)
    with pytest.raises(UserError, match="data.pkl holds"):
        read_pair(tmp_path / "data.pkl")

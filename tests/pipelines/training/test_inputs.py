"""What a training run reads: looked at once by the driver, and not found out twice."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from denoise.config import load_config
from denoise.data.shards import DamagedError, Shards
from denoise.errors import UserError
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.methods import with_net
from denoise.sharding.writer import write_shards
from pipelines.datasets.layout import disk_cache, results_cache
from pipelines.datasets.shard import find_sources
from pipelines.training.inputs import open_datasets, training_inputs


@pytest.fixture
def config(project, photographs, tmp_path):
    """A project with a test set of another image."""
    (tmp_path / "own").mkdir()
    write_image(tmp_path / "own" / "chelsea.png", DecodedImage(read_image(photographs / "chelsea.png").pixels[:64]))
    write_shards(project / "data/shards/test/own", find_sources(tmp_path / "own"), 1 << 20)
    return with_net(load_config(project / "params.yaml", ["net=cnn5", "data.test=[own]"]))


@pytest.fixture
def reads(monkeypatch):
    """The names of the sets whose fingerprints are read."""
    read, fingerprints = set(), Shards.fingerprints_of
    monkeypatch.setattr(
        Shards,
        "fingerprints_of",
        lambda shards, number: read.add(Path(shards.name).name) or fingerprints(shards, number),
    )
    return read


def test_a_second_run_on_the_same_sets_reads_no_fingerprint(config, reads):
    inputs = training_inputs(config)
    images = inputs.training_images(config)
    assert reads == {"small", "own"}
    assert len(list(results_cache().folder.iterdir())) == 2
    reads.clear()
    again = training_inputs(config)
    assert again == inputs
    assert again.training_images(config) == images
    assert reads == set()


def test_another_split_is_read_for_what_it_is_named_for(config):
    chosen = dataclasses.replace(config, data=dataclasses.replace(config.data, val=("own/test", "small")))
    inputs = training_inputs(chosen)
    assert [(part.name, part.split) for part in inputs.parts] == [
        ("small", "train"),
        ("own/test", "val"),
        ("small", "val"),
    ]
    sets = open_datasets(chosen, inputs.parts)
    assert [Path(shards.name).parts[-2:] for shards in sets["val"].parts] == [("test", "own"), ("val", "small")]
    learnt = dataclasses.replace(config, data=dataclasses.replace(config.data, train=("own/test",)))
    with pytest.raises(UserError, match=r"in the training set own/test .* with data\.allow_overlap=own"):
        training_inputs(learnt)
    allowed = dataclasses.replace(learnt.data, allow_overlap=("own",), test=("own/test",))
    assert training_inputs(dataclasses.replace(learnt, data=allowed)).parts[0].name == "own/test"


def test_a_user_without_a_home_trains_without_what_is_remembered(config, reads, monkeypatch):
    monkeypatch.delenv("DENOISE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    for _ in range(2):
        reads.clear()
        training_inputs(config)
        assert reads == {"small", "own"}
    with pytest.raises(UserError, match="set DENOISE_CACHE to a folder"):
        disk_cache()


def test_a_test_set_that_gets_a_training_image_is_refused_after_a_run_without_it(config, project, small_images):
    training_inputs(config)
    shutil.rmtree(project / "data/shards/test/own")
    write_shards(project / "data/shards/test/own", find_sources(small_images), 1 << 20)
    with pytest.raises(UserError, match="5 images of the test set own are in the training set small"):
        training_inputs(config)


def test_the_driver_misses_a_shard_at_once_and_a_worker_when_it_reads_it(config, project):
    inputs = training_inputs(config)
    (project / "data/shards/train/small/000001.tar").unlink()
    with pytest.raises(DamagedError, match=r"000001\.tar is missing; make the shards again"):
        training_inputs(config)
    images = open_datasets(config, inputs.parts)["train"]
    assert images.pixels(0, "clean").size
    with pytest.raises(DamagedError, match=r"000001\.tar is missing; make the shards again"):
        images.pixels(images.counts[0], "clean")

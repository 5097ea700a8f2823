"""What the pipeline does with data sets: it makes those that can be fetched, and writes over nobody's work."""

import json
import shutil

import pytest

from denoise.config import Config, Data
from denoise.errors import UserError
from pipelines.datasets.fetch import fetch
from pipelines.datasets.layout import open_set, shard_folder
from pipelines.datasets.prepare import make_sets, set_versions
from pipelines.datasets.shard import shard


@pytest.fixture
def record(tmp_path):
    return tmp_path / "made.json"


def configuration(root, *names, **settings):
    return Config(data=Data(root=str(root), val=names, train=(), test=(), **settings))


def make(config, record):
    versions = make_sets(config, "val", record)
    record.write_text(json.dumps(versions))
    return versions


def test_a_set_is_made_and_made_anew_by_the_pipeline(tmp_path, record):
    config = configuration(tmp_path, "samples")
    first = make(config, record)
    assert first == {"samples": open_set(config, "val", "samples").digest} == set_versions(config, "val")
    folder = shard_folder(tmp_path, "val", "samples")
    before = (folder / "index.json").stat().st_ino
    assert make(config, record) == first
    assert (folder / "index.json").stat().st_ino != before


def test_another_split_is_made_once_and_known_to_both_that_use_it(tmp_path, capsys):
    data = Data(root=str(tmp_path), train=(), val=("samples/test",), test=("samples",))
    config = Config(data=data)
    for split in ("val", "test", "val"):
        versions = make_sets(config, split, tmp_path / f"{split}.json")
        (tmp_path / f"{split}.json").write_text(json.dumps(versions))
        assert versions == set_versions(config, split)
    assert "was not made by the pipeline" not in capsys.readouterr().err
    assert versions == {"samples/test": open_set(config, "test", "samples").digest}
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["test"]


def test_what_was_made_by_hand_stays(tmp_path, record, small_images, capsys):
    """Also under the name of a set that could be fetched, and also where the pipeline has made that set before."""
    config = configuration(tmp_path, "samples")
    make(config, record)
    shard("samples", "val", tmp_path, source=small_images)
    own = set_versions(config, "val")
    assert make(config, record) == {}
    assert "was not made by the pipeline and stays as it is" in capsys.readouterr().err
    assert make(config, record) == {}
    assert set_versions(config, "val") == own


def test_own_sets_are_used_as_they_are(tmp_path, record, small_images):
    config = configuration(tmp_path, "samples", "mine")
    shard("mine", "val", tmp_path, source=small_images)
    before = {path.name: path.stat().st_mtime_ns for path in shard_folder(tmp_path, "val", "mine").iterdir()}
    assert list(make(config, record)) == ["samples"]
    assert list(set_versions(config, "val")) == ["samples", "mine"]
    assert {path.name: path.stat().st_mtime_ns for path in shard_folder(tmp_path, "val", "mine").iterdir()} == before


def test_a_version_says_what_is_there_now(tmp_path, small_images):
    config = configuration(tmp_path, "mine")
    shard("mine", "val", tmp_path, source=small_images)
    first = set_versions(config, "val")
    images = shutil.copytree(small_images, tmp_path / "images")
    next(images.iterdir()).unlink()
    shard("mine", "val", tmp_path, source=images)
    assert set_versions(config, "val") != first
    shard("mine", "val", tmp_path, source=small_images)
    assert set_versions(config, "val") == first


def test_a_set_that_was_deleted_is_made_again(tmp_path, record):
    config = configuration(tmp_path, "samples")
    first = make(config, record)
    shutil.rmtree(shard_folder(tmp_path, "val", "samples"))
    assert set_versions(config, "val") == first


def test_an_own_set_that_is_missing_is_named_with_what_to_do(tmp_path):
    config = configuration(tmp_path, "mine")
    with pytest.raises(UserError, match="val split of mine is not in .*denoise shard mine --from FOLDER --split val"):
        set_versions(config, "val")
    kept = tmp_path / "shards/val/mine.dvc"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(UserError, match=f"DVC keeps it: `dvc checkout {kept}`, or `dvc pull {kept}`"):
        set_versions(config, "val")


def test_nothing_is_made_where_shards_are_read_from_a_url(tmp_path, record):
    config = configuration(tmp_path / "here", "samples", url=str(tmp_path / "there"))
    assert make(config, record) == {}
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["../../x", "/x", ".", ""])
def test_a_name_does_not_lead_out_of_the_data_folder(tmp_path, record, small_images, name):
    with pytest.raises(UserError, match="the name of the data set is"):
        shard(name, "val", tmp_path / "data", source=small_images)
    with pytest.raises(UserError, match="the name of the data set is"):
        set_versions(configuration(tmp_path / "data", name), "val")
    assert not (tmp_path / "data").exists()


def test_fetched_images_are_those_of_the_split(tmp_path, record):
    make(configuration(tmp_path, "samples"), record)
    assert [path.parent.name for path in fetch("samples", tmp_path, splits=["val"])] == ["val"]
    assert not (tmp_path / "raw/train").exists()

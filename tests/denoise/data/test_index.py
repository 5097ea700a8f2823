"""An index and lists of samples that lie, as a stranger's may: one sentence, and no file of the user's is touched."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from denoise.data.dataset import ShardedDataset
from denoise.data.index import LARGEST_INDEX, MOST_VALUES, read_entries, read_index
from denoise.data.shards import INDEX, DamagedError, Shards
from tests.mutations import Victim, mutated, sentence_of


@pytest.fixture
def folder(small_shards, tmp_path):
    return shutil.copytree(small_shards, tmp_path / "set")


def read_all(folder):
    """Read whatever a set of shards has, as training and evaluation do."""
    shards = Shards.open(folder)
    dataset = ShardedDataset([shards])
    dataset.keep_decoded(1 << 20)
    try:
        for index in range(len(dataset)):
            for view in dataset.views(index):
                dataset.pixels(index, view)
            dataset.size(index), dataset.name(index)
        list(shards.fingerprints())
    finally:
        dataset.close()


def refuses_or_reads(name, folder):
    sentence_of(name, lambda: read_all(folder))


def write_list(folder, data, number=0):
    """Write a list of samples, and the index that fits it."""
    index = json.loads((folder / INDEX).read_text())
    entry = index["shards"][number]
    (folder / entry["file"]).with_suffix(".json").write_bytes(data)
    entry["samples_bytes"], entry["samples_sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (folder / INDEX).write_text(json.dumps(index))


def test_no_index_ends_in_a_traceback(folder, tmp_path):
    victim = Victim(tmp_path)
    for name, data in mutated(json.loads((folder / INDEX).read_text()), *victim.names()):
        (folder / INDEX).write_bytes(data)
        refuses_or_reads(name, folder)
    assert victim.is_there()


def test_no_list_of_samples_ends_in_a_traceback(folder, tmp_path):
    victim = Victim(tmp_path)
    path = folder / "000000.json"
    for name, data in mutated(json.loads(path.read_text()), *victim.names()):
        if data:
            write_list(folder, data)
            refuses_or_reads(name, folder)
    assert victim.is_there()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sha256", "/home/me/thesis.txt"),
        ("samples_sha256", "../../thesis.txt"),
        ("samples_sha256", "A" * 64),
        ("file", "../000000.tar"),
        ("file", "٠٠٠٠٠٠.tar"),
        ("file", "0" * 300 + ".tar"),
        ("bytes", -1),
        ("bytes", True),
        ("bytes", 1 << 62),
        ("samples", True),
        ("samples", 1 << 40),
        ("samples", 1.0),
        ("samples_bytes", 1 << 40),
        ("samples_bytes", 0),
    ],
)
def test_an_entry_that_no_shard_has_is_refused(folder, key, value):
    index = json.loads((folder / INDEX).read_text())
    index["shards"][0][key] = value
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(DamagedError, match="entries that describe no shard"):
        Shards.open(folder)


def test_a_shard_named_twice_is_refused(folder):
    index = json.loads((folder / INDEX).read_text())
    index["shards"].append(index["shards"][0])
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(DamagedError, match="names a shard twice"):
        Shards.open(folder)


def test_more_samples_than_fit_into_a_shard_are_refused(folder):
    index = json.loads((folder / INDEX).read_text())
    index["shards"][0]["samples"] = 1 << 20
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(DamagedError, match="too small for 1048576 samples"):
        Shards.open(folder)


def test_what_was_read_comes_back_entry_by_entry(folder):
    entries = json.loads((folder / INDEX).read_text())["shards"]
    entries[0] |= {"sha256": "00" * 31 + "ab", "samples_sha256": "ab" + "00" * 31, "bytes": 1 << 44}
    entries[1] |= {"file": "123456789012.tar", "samples_bytes": 1 << 30}
    read = read_entries({"shards": entries})
    assert list(read) == [read[number] for number in range(len(read))] == entries
    assert read.counts == tuple(entry["samples"] for entry in entries)


def test_an_index_of_more_values_than_shards_have_is_refused_before_it_is_parsed():
    with pytest.raises(ValueError, match="more than the 2097152 values"):
        read_index(b'{"format": 2, "shards": [' + b"[]," * MOST_VALUES + b"]}")
    with pytest.raises(ValueError, match="bytes, more than"):
        read_index(bytes(LARGEST_INDEX + 1))


def test_a_shard_named_100_000_times_is_refused_like_two():
    shard = {"file": "000000.tar", "bytes": 4096, "samples": 1, "samples_bytes": 100}
    shard |= {"sha256": "0" * 64, "samples_sha256": "0" * 64}
    with pytest.raises(ValueError, match="names a shard twice"):
        read_entries({"format": 2, "shards": [shard] * 100_000})


@pytest.mark.parametrize("lost", ["000001.tar", "000001.json"])
def test_a_file_of_a_large_set_is_looked_at_when_it_is_first_used(folder, monkeypatch, lost):
    monkeypatch.setattr("denoise.data.shards.MAX_CHECKED", 1)
    intact = Shards.open(folder)
    path = folder / lost
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(DamagedError, match=rf"shard .*{lost} is missing; make the shards again"):
        Shards.open(folder).encoded(intact.ends[0])
    path.write_bytes(data[:-1])
    with pytest.raises(DamagedError, match=rf"{lost} has {len(data) - 1} bytes instead of {len(data)}; make"):
        Shards.open(folder).encoded(intact.ends[0])
    assert Shards.open(folder).encoded(0) == intact.encoded(0)


def test_a_worker_does_not_look_at_all_files_and_the_driver_does(folder):
    (folder / "000001.tar").unlink()
    assert Shards.open(folder, check=False).encoded(0)
    with pytest.raises(DamagedError, match=r"000001\.tar is missing"):
        Shards.open(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", -512),
        ("offset", 1 << 43),
        ("bytes", 1 << 43),
        ("crc32", -1),
        ("width", 0),
        ("mode", "CMYK"),
        ("look", "x"),
    ],
)
def test_an_image_that_no_shard_has_is_refused(folder, key, value):
    samples = json.loads((folder / "000000.json").read_text())
    samples[0]["views"]["clean"][key] = value
    write_list(folder, json.dumps(samples).encode())
    with pytest.raises(DamagedError, match=r"000000\.json does not describe"):
        Shards.open(folder).pixels(0)


@pytest.mark.parametrize(("key", "value"), [("width", 31), ("height", 3000), ("mode", "RGB;16")])
@pytest.mark.parametrize("cached", [True, False])
def test_an_image_of_another_shape_than_its_list_says_is_refused(folder, key, value, cached):
    samples = json.loads((folder / "000000.json").read_text())
    samples[0]["views"]["clean"][key] = value
    write_list(folder, json.dumps(samples).encode())
    dataset = ShardedDataset([Shards.open(folder)])
    if cached:
        dataset.keep_decoded(1 << 30)
    with pytest.raises(DamagedError, match="not what its index says"):
        dataset.pixels(0, "clean")
    dataset.close()


def test_a_sample_with_a_view_that_the_first_has_not_is_read_past_the_cache(folder):
    samples = json.loads((folder / "000001.json").read_text())
    samples[0]["views"]["noisy"] = samples[0]["views"]["clean"]
    write_list(folder, json.dumps(samples).encode(), number=1)
    dataset = ShardedDataset([Shards.open(folder)])
    dataset.keep_decoded(1 << 20)
    index = dataset.counts[0]
    assert np.array_equal(dataset.pixels(index, "noisy"), dataset.pixels(index, "clean"))
    dataset.close()


def test_a_list_that_is_no_plain_file_is_missing(folder):
    (folder / "000000.json").unlink()
    (folder / "000000.json").mkdir()
    with pytest.raises(DamagedError, match=r"000000\.json is missing"):
        Shards.open(folder)

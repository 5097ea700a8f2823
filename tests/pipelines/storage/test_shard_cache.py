import fcntl
import hashlib
import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from denoise.data.shards import DamagedError, Shards
from denoise.errors import UserError
from pipelines.storage import base as storage
from pipelines.storage import shard_cache as depot_module
from pipelines.storage.base import NotFoundError, TransientError, remote
from pipelines.storage.shard_cache import ShardCache


class Place:
    """A remote that counts, and that can be told to fail."""

    address = "s3://bucket"

    def __init__(self, folder: Path) -> None:
        self.inner, self.asked, self.broken = remote(str(folder)), [], 0

    def receive(self, path, file, start):
        self.asked.append((path, start))
        if self.broken:
            self.broken -= 1
            raise TransientError("connection reset")
        self.inner.receive(path, file, start)

    def send(self, source, path):
        raise NotImplementedError


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)


@pytest.fixture
def files(tmp_path):
    """Ten files of 1,000 bytes each: name -> (sha256, bytes)."""
    folder = tmp_path / "there" / "set"
    folder.mkdir(parents=True)
    found = {}
    for number in range(10):
        data = random.Random(number).randbytes(1000)
        (folder / f"{number}.tar").write_bytes(data)
        found[f"{number}.tar"] = (hashlib.sha256(data).hexdigest(), data)
    return found


@pytest.fixture
def place(tmp_path, files):
    return Place(tmp_path / "there")


def make(place, tmp_path, files, budget=10_000):
    return ShardCache(place, "set", tmp_path / "cache", budget, {name: len(data) for name, (_, data) in files.items()})


def read(shard_cache, files, name):
    with shard_cache.open(name, files[name][0]) as file:
        return file.read()


def held(tmp_path):
    return sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())


def test_a_file_is_brought_once(place, tmp_path, files):
    for shard_cache in (make(place, tmp_path, files), make(place, tmp_path, files)):
        for name, (_, data) in files.items():
            assert read(shard_cache, files, name) == data
    assert len(place.asked) == 10


def test_the_least_recently_used_make_room(place, tmp_path, files, monkeypatch):
    monkeypatch.setattr(depot_module, "FRESH", 0.0)
    shard_cache = make(place, tmp_path, files, budget=3000)
    for name in ("0.tar", "1.tar", "2.tar", "0.tar", "3.tar"):
        assert read(shard_cache, files, name) == files[name][1]
        assert held(tmp_path) <= 3000
        time.sleep(0.02)
    there = {path.name for path in (tmp_path / "cache").iterdir() if path.stat().st_size}
    assert there == {files[name][0] for name in ("0.tar", "2.tar", "3.tar")}


def test_a_file_that_was_removed_while_it_is_read_stays_readable(place, tmp_path, files):
    shard_cache = make(place, tmp_path, files, budget=1000)
    with shard_cache.open("0.tar", files["0.tar"][0]) as file:
        assert read(shard_cache, files, "1.tar") == files["1.tar"][1]
        assert file.read() == files["0.tar"][1]


def test_a_shard_larger_than_the_cache_is_told(place, tmp_path, files):
    with pytest.raises(UserError, match=r"data\.disk_gb"):
        read(make(place, tmp_path, files, budget=999), files, "0.tar")


def test_what_breaks_is_tried_again(place, tmp_path, files, capsys):
    place.broken = 3
    assert read(make(place, tmp_path, files), files, "0.tar") == files["0.tar"][1]
    assert "connection reset; trying again" in capsys.readouterr().err


def test_what_arrived_is_not_brought_again(place, tmp_path, files):
    shard_cache = make(place, tmp_path, files)
    part = tmp_path / "cache" / f"{files['0.tar'][0]}.1000.part"
    part.write_bytes(files["0.tar"][1][:400])
    assert read(shard_cache, files, "0.tar") == files["0.tar"][1]
    assert place.asked == [("set/0.tar", 400)]


def test_a_part_of_something_else_is_found(place, tmp_path, files):
    shard_cache = make(place, tmp_path, files)
    (tmp_path / "cache" / f"{files['0.tar'][0]}.1000.part").write_bytes(bytes(400))
    assert read(shard_cache, files, "0.tar") == files["0.tar"][1]
    assert place.asked == [("set/0.tar", 400), ("set/0.tar", 0)]


def test_patience_ends(place, tmp_path, files, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.05)
    place.broken = 1000
    with pytest.raises(UserError, match=r"s3://bucket/set/0\.tar could not be transferred"):
        read(make(place, tmp_path, files), files, "0.tar")


def test_a_wrong_file_and_a_missing_one_are_damage(place, tmp_path, files):
    shard_cache = make(place, tmp_path, files)
    (tmp_path / "there" / "set" / "0.tar").write_bytes(bytes(1000))
    (tmp_path / "there" / "set" / "1.tar").unlink()
    with pytest.raises(DamagedError, match=r"set/0\.tar has another sha256"):
        read(shard_cache, files, "0.tar")
    with pytest.raises(DamagedError, match=r"set/1\.tar does not exist"):
        read(shard_cache, files, "1.tar")
    assert not list((tmp_path / "cache").glob(f"{files['0.tar'][0]}*"))


def test_a_copy_that_goes_bad_on_this_disk_is_brought_again(small_shards, tmp_path):
    place = Place(small_shards.parent)
    sound = Shards.open(small_shards)
    sizes = {path.name: path.stat().st_size for path in small_shards.iterdir()}
    shard_cache = ShardCache(place, small_shards.name, tmp_path / "cache", 1 << 30, sizes)
    shards = Shards.read("s3://bucket/small", (small_shards / "index.json").read_bytes(), shard_cache)
    assert shards.encoded(0) == sound.encoded(0)
    copy = tmp_path / "cache" / shards.entries[0]["sha256"]
    copy.write_bytes(bytes(copy.stat().st_size))
    assert shards.encoded(0) == sound.encoded(0)
    assert [path for path, _ in place.asked].count(f"{small_shards.name}/000000.tar") == 2


def test_files_are_brought_ahead(place, tmp_path, files):
    shard_cache = make(place, tmp_path, files)
    shard_cache.expect([(name, files[name][0]) for name in ("3.tar", "4.tar")])
    deadline = time.monotonic() + 10
    while len(list((tmp_path / "cache").glob("?" * 64))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    asked = len(place.asked)
    assert asked == 2
    assert read(shard_cache, files, "4.tar") == files["4.tar"][1]
    assert len(place.asked) == asked
    shard_cache.close()


def test_a_cache_too_small_for_what_is_brought_ahead_is_told_once(place, tmp_path, files, capsys):
    shard_cache = make(place, tmp_path, files, budget=2000)
    shard_cache.expect([(name, sha256) for name, (sha256, _) in files.items()])
    for coming in list(shard_cache.coming.values()):
        coming.result(10)
    for name in files:
        assert read(shard_cache, files, name) == files[name][1]
    told = capsys.readouterr().err
    assert told.count("data.disk_gb") == 1
    shard_cache.close()


def _read_at_random(folder, cache, files, budget, seed, seconds):
    shard_cache = ShardCache(
        Place(folder), "set", cache, budget, {name: len(data) for name, (_, data) in files.items()}
    )
    rng, deadline = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < deadline:
        name = rng.choice(sorted(files))
        with shard_cache.open(name, files[name][0]) as file:
            assert file.read() == files[name][1]


def _watch_size(cache, most, stop):
    """Note the most bytes that the cache ever holds; with its lock, else what goes and what comes are both counted."""
    while not stop.is_set():
        with (cache / "room.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sizes = []
            for path in cache.iterdir():
                with suppress(FileNotFoundError):  # renamed, now that it is whole
                    sizes.append(path.stat().st_size)
            most.value = max(most.value, sum(sizes))
        time.sleep(0.002)


def test_processes_that_are_killed_do_no_harm(tmp_path, files):
    """Four processes read at random through a cache of three files; one after another is killed and started again."""
    context, cache, budget = multiprocessing.get_context("fork"), tmp_path / "cache", 3000
    cache.mkdir()
    most, stop = context.Value("q", 0), context.Event()

    def start(seed):
        process = context.Process(target=_read_at_random, args=(tmp_path / "there", cache, files, budget, seed, 3.0))
        process.start()
        return process

    watcher = context.Process(target=_watch_size, args=(cache, most, stop))
    watcher.start()
    readers, rng = [start(seed) for seed in range(4)], random.Random(0)
    for turn in range(12):
        time.sleep(0.1)
        victim = rng.randrange(4)
        os.kill(readers[victim].pid, signal.SIGKILL)
        readers[victim].join()
        readers[victim] = start(100 + turn)
    for reader in readers:
        reader.join(60)
    stop.set()
    watcher.join()
    assert [reader.exitcode for reader in readers] == [0] * 4
    assert 2000 < most.value <= budget  # it was used, and never held more than allowed
    shard_cache = make(Place(tmp_path / "there"), tmp_path, files, budget)
    assert all(read(shard_cache, files, name) == data for name, (_, data) in files.items())


def test_a_site_that_does_not_have_it(tmp_path):
    with pytest.raises(NotFoundError):
        storage.fetch_bytes(remote(str(tmp_path)), "set/index.json")

import fcntl
import hashlib
import multiprocessing
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from denoise.data.index import ShardFile
from denoise.data.shards import DamagedError, Shards
from denoise.errors import UserError
from pipelines.storage import base as storage
from pipelines.storage import shard_cache as cache_module
from pipelines.storage.base import NotFoundError, TransientError
from pipelines.storage.remote import fetch_bytes, remote
from pipelines.storage.shard_cache import ShardCache


class CountingRemote:
    """A remote that counts its requests and fails on demand."""

    address = "s3://bucket"

    def __init__(self, folder: Path) -> None:
        self.inner, self.requests, self.broken = remote(str(folder)), [], 0

    def receive(self, path, file, start):
        self.requests.append((path, start))
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
    files = {}
    for number in range(10):
        data = random.Random(number).randbytes(1000)
        (folder / f"{number}.tar").write_bytes(data)
        files[f"{number}.tar"] = (hashlib.sha256(data).hexdigest(), data)
    return files


@pytest.fixture
def source(tmp_path, files):
    return CountingRemote(tmp_path / "there")


def make(source, tmp_path, files, budget=10_000):
    return ShardCache(source, "set", tmp_path / "cache", budget)


def described(files, name):
    sha256, data = files[name]
    return ShardFile(name, len(data), sha256)


def read(shard_cache, files, name):
    with shard_cache.open(described(files, name)) as file:
        return file.read()


def held(tmp_path):
    return sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())


def test_a_file_is_downloaded_once(source, tmp_path, files):
    for shard_cache in (make(source, tmp_path, files), make(source, tmp_path, files)):
        for name, (_, data) in files.items():
            assert read(shard_cache, files, name) == data
    assert len(source.requests) == 10


def test_the_least_recently_used_make_room(source, tmp_path, files, monkeypatch):
    monkeypatch.setattr(cache_module, "TOUCH_INTERVAL", 0.0)
    shard_cache = make(source, tmp_path, files, budget=3000)
    for name in ("0.tar", "1.tar", "2.tar", "0.tar", "3.tar"):
        assert read(shard_cache, files, name) == files[name][1]
        assert held(tmp_path) <= 3000
        time.sleep(0.02)
    there = {path.name for path in (tmp_path / "cache").iterdir() if path.stat().st_size}
    assert there == {files[name][0] for name in ("0.tar", "2.tar", "3.tar")}


def test_a_file_that_was_removed_while_it_is_read_stays_readable(source, tmp_path, files):
    shard_cache = make(source, tmp_path, files, budget=1000)
    with shard_cache.open(described(files, "0.tar")) as file:
        assert read(shard_cache, files, "1.tar") == files["1.tar"][1]
        assert file.read() == files["0.tar"][1]


def test_a_shard_larger_than_the_cache_is_a_user_error(source, tmp_path, files):
    with pytest.raises(UserError, match=r"data\.disk_gb"):
        read(make(source, tmp_path, files, budget=999), files, "0.tar")


def test_a_broken_transfer_is_tried_again(source, tmp_path, files, capsys):
    source.broken = 3
    assert read(make(source, tmp_path, files), files, "0.tar") == files["0.tar"][1]
    assert "connection reset; trying again" in capsys.readouterr().err


def test_a_broken_transfer_is_resumed(source, tmp_path, files):
    shard_cache = make(source, tmp_path, files)
    part = tmp_path / "cache" / f"{files['0.tar'][0]}.1000.part"
    part.write_bytes(files["0.tar"][1][:400])
    assert read(shard_cache, files, "0.tar") == files["0.tar"][1]
    assert source.requests == [("set/0.tar", 400)]


def test_a_part_of_another_file_is_discarded(source, tmp_path, files):
    shard_cache = make(source, tmp_path, files)
    (tmp_path / "cache" / f"{files['0.tar'][0]}.1000.part").write_bytes(bytes(400))
    assert read(shard_cache, files, "0.tar") == files["0.tar"][1]
    assert source.requests == [("set/0.tar", 400), ("set/0.tar", 0)]


def test_retries_end(source, tmp_path, files, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.05)
    source.broken = 1000
    with pytest.raises(UserError, match=r"s3://bucket/set/0\.tar could not be transferred"):
        read(make(source, tmp_path, files), files, "0.tar")


def test_a_wrong_file_and_a_missing_one_are_damage(source, tmp_path, files):
    shard_cache = make(source, tmp_path, files)
    (tmp_path / "there" / "set" / "0.tar").write_bytes(bytes(1000))
    (tmp_path / "there" / "set" / "1.tar").unlink()
    with pytest.raises(DamagedError, match=r"set/0\.tar has another sha256"):
        read(shard_cache, files, "0.tar")
    with pytest.raises(DamagedError, match=r"set/1\.tar does not exist"):
        read(shard_cache, files, "1.tar")
    assert not list((tmp_path / "cache").glob(f"{files['0.tar'][0]}*"))


def test_a_copy_damaged_on_this_disk_is_downloaded_again(small_shards, tmp_path):
    source = CountingRemote(small_shards.parent)
    sound = Shards.open(small_shards)
    shard_cache = ShardCache(source, small_shards.name, tmp_path / "cache", 1 << 30)
    shards = Shards.read("s3://bucket/small", (small_shards / "index.json").read_bytes(), shard_cache)
    assert shards.encoded(0) == sound.encoded(0)
    copy = tmp_path / "cache" / shards.entries[0]["sha256"]
    copy.write_bytes(bytes(copy.stat().st_size))
    assert shards.encoded(0) == sound.encoded(0)
    assert [path for path, _ in source.requests].count(f"{small_shards.name}/000000.tar") == 2


def test_expected_files_are_prefetched(source, tmp_path, files):
    shard_cache = make(source, tmp_path, files)
    shard_cache.announce([described(files, name) for name in ("3.tar", "4.tar")])
    deadline = time.monotonic() + 10
    while len(list((tmp_path / "cache").glob("?" * 64))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    count = len(source.requests)
    assert count == 2
    assert read(shard_cache, files, "4.tar") == files["4.tar"][1]
    assert len(source.requests) == count
    shard_cache.close()


def test_a_cache_too_small_for_prefetching_is_reported_once(source, tmp_path, files, capsys):
    shard_cache = make(source, tmp_path, files, budget=2000)
    shard_cache.announce([described(files, name) for name in files])
    for download in list(shard_cache.downloads.values()):
        download.result(10)
    for name in files:
        assert read(shard_cache, files, name) == files[name][1]
    errors = capsys.readouterr().err
    assert errors.count("data.disk_gb") == 1
    shard_cache.close()


def _read_at_random(folder, cache, files, budget, seed, seconds):
    shard_cache = ShardCache(CountingRemote(folder), "set", cache, budget)
    rng, deadline = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < deadline:
        name = rng.choice(sorted(files))
        with shard_cache.open(described(files, name)) as file:
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
        readers[victim].kill()
        readers[victim].join()
        readers[victim] = start(100 + turn)
    for reader in readers:
        reader.join(60)
    stop.set()
    watcher.join()
    assert [reader.exitcode for reader in readers] == [0] * 4
    assert 2000 < most.value <= budget  # it was used, and never held more than allowed
    shard_cache = make(CountingRemote(tmp_path / "there"), tmp_path, files, budget)
    assert all(read(shard_cache, files, name) == data for name, (_, data) in files.items())


def test_a_missing_index_is_not_found(tmp_path):
    with pytest.raises(NotFoundError):
        fetch_bytes(remote(str(tmp_path)), "set/index.json")

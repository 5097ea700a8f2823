import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from denoise.data import decoded_cache
from denoise.data.decoded_cache import DecodedCache

SHAPES = [(4, 6, 3, "uint8"), (5, 5, 1, "uint16"), (0, 0, 1, "uint8"), (8, 8, 3, "uint8")]
ALL = 4 * 6 * 3 + 25 * 2 + 192


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder instead of this machine's shared memory."""
    monkeypatch.setattr(decoded_cache, "FOLDERS", (tmp_path,))
    return tmp_path


def image(number):
    height, width, channels, kind = SHAPES[number]
    return np.random.default_rng(number).integers(0, 255, (height, width, channels)).astype(kind)


def test_cached_images_come_back():
    cache = DecodedCache("key", SHAPES, ALL)
    assert all(cache.get(number) is None for number in range(4))
    for number in (3, 0, 1):
        cache.put(number, image(number))
    for number in (0, 1, 3):
        assert np.array_equal(cache.get(number), image(number))
        assert cache.get(number).dtype == SHAPES[number][3]
    cache.close()
    assert cache.get(0) is None


def test_the_budget_is_respected(folder):
    cache = DecodedCache("key", SHAPES, 100)
    for number in (0, 1, 3):
        cache.put(number, image(number))
    assert cache.get(0) is not None
    assert cache.get(1) is None
    (file,) = folder.iterdir()
    assert file.stat().st_size <= 100 + len(SHAPES)
    cache.close()
    nothing = DecodedCache("key", SHAPES, 10)
    nothing.put(0, image(0))
    assert nothing.get(0) is None
    nothing.close()
    assert list(folder.iterdir()) == []


def _read(folder, queue):
    decoded_cache.FOLDERS = (folder,)
    cache = DecodedCache("key", SHAPES, ALL)
    queue.put(cache.get(0))
    cache.put(3, image(3))
    cache.close()


def test_processes_share_their_images(folder):
    cache = DecodedCache("key", SHAPES, ALL)
    other = DecodedCache("other key", SHAPES, ALL)
    cache.put(0, image(0))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_read, args=(folder, queue))
    process.start()
    assert np.array_equal(queue.get(timeout=60), image(0))
    process.join(60)
    assert np.array_equal(cache.get(3), image(3))
    assert other.get(0) is None
    cache.close()
    other.close()
    assert list(folder.iterdir()) == []  # the last process frees the memory


def test_the_memory_of_a_killed_process_is_freed_by_the_next_cache(folder):
    code = (
        "import sys, time, pathlib\n"
        "from denoise.data import decoded_cache\n"
        "decoded_cache.FOLDERS = (pathlib.Path(sys.argv[1]),)\n"
        "cache = decoded_cache.DecodedCache('killed', [(9, 9, 3, 'uint8')], 1000)\n"
        "print('here', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"here\n"
    other = DecodedCache("other", SHAPES, ALL)
    assert len(list(folder.iterdir())) == 2  # it is alive
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    again = DecodedCache("again", SHAPES, ALL)
    assert len(list(folder.iterdir())) == 2
    other.close()
    again.close()
    assert list(folder.iterdir()) == []


def test_without_room_nothing_is_cached(monkeypatch, folder):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = DecodedCache("key", SHAPES, ALL)
    cache.put(0, image(0))
    assert cache.get(0) is None
    cache.close()
    assert list(folder.iterdir()) == []


def test_the_next_folder_is_used_if_the_first_has_no_room(monkeypatch, folder):
    (folder / "disk").mkdir()
    monkeypatch.setattr(decoded_cache, "FOLDERS", (Path("/nowhere"), folder / "disk"))
    cache = DecodedCache("key", SHAPES, ALL)
    cache.put(0, image(0))
    assert np.array_equal(cache.get(0), image(0))
    cache.close()


def test_an_image_in_use_outlives_its_cache():
    cache = DecodedCache("key", SHAPES, ALL)
    cache.put(0, image(0))
    pixels = cache.get(0)
    cache.close()
    time.sleep(0)
    assert np.array_equal(pixels, image(0))

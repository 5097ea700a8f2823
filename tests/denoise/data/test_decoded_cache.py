import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from denoise.data import decoded_cache as image_cache
from denoise.data.decoded_cache import DecodedCache

SHAPES = [(4, 6, 3, "uint8"), (5, 5, 1, "uint16"), (0, 0, 1, "uint8"), (8, 8, 3, "uint8")]
ALL = 4 * 6 * 3 + 25 * 2 + 192


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder instead of this machine's shared memory."""
    monkeypatch.setattr(image_cache, "PLACES", (tmp_path,))
    return tmp_path


def image(number):
    height, width, channels, kind = SHAPES[number]
    return np.random.default_rng(number).integers(0, 255, (height, width, channels)).astype(kind)


def test_what_was_put_comes_back():
    cache = DecodedCache("key", SHAPES, ALL)
    assert all(cache.get(number) is None for number in range(4))
    for number in (3, 0, 1):
        cache.put(number, image(number))
    for number in (0, 1, 3):
        assert np.array_equal(cache.get(number), image(number))
        assert cache.get(number).dtype == SHAPES[number][3]
    cache.close()
    assert cache.get(0) is None


def test_the_budget_is_kept(place):
    cache = DecodedCache("key", SHAPES, 100)
    for number in (0, 1, 3):
        cache.put(number, image(number))
    assert cache.get(0) is not None
    assert cache.get(1) is None
    (file,) = place.iterdir()
    assert file.stat().st_size <= 100 + len(SHAPES)
    cache.close()
    nothing = DecodedCache("key", SHAPES, 10)
    nothing.put(0, image(0))
    assert nothing.get(0) is None
    nothing.close()
    assert list(place.iterdir()) == []


def _read(place, queue):
    decoded_cache.PLACES = (place,)
    cache = DecodedCache("key", SHAPES, ALL)
    queue.put(cache.get(0))
    cache.put(3, image(3))
    cache.close()


def test_processes_share_their_images(place):
    cache = DecodedCache("key", SHAPES, ALL)
    other = DecodedCache("other key", SHAPES, ALL)
    cache.put(0, image(0))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_read, args=(place, queue))
    process.start()
    assert np.array_equal(queue.get(timeout=60), image(0))
    process.join(60)
    assert np.array_equal(cache.get(3), image(3))
    assert other.get(0) is None
    cache.close()
    other.close()
    assert list(place.iterdir()) == []  # the last one frees the memory


def test_a_killed_process_leaves_nothing_for_long(place):
    code = (
        "import sys, time, pathlib\n"
        "from denoise.data import decoded_cache\n"
        "decoded_cache.PLACES = (pathlib.Path(sys.argv[1]),)\n"
        "cache = decoded_cache.DecodedCache('killed', [(9, 9, 3, 'uint8')], 1000)\n"
        "print('here', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"here\n"
    other = DecodedCache("other", SHAPES, ALL)
    assert len(list(place.iterdir())) == 2  # it is alive
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    again = DecodedCache("again", SHAPES, ALL)
    assert len(list(place.iterdir())) == 2
    other.close()
    again.close()
    assert list(place.iterdir()) == []


def test_without_room_nothing_is_kept_and_nothing_breaks(monkeypatch, place):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = DecodedCache("key", SHAPES, ALL)
    cache.put(0, image(0))
    assert cache.get(0) is None
    cache.close()
    assert list(place.iterdir()) == []


def test_the_next_place_is_taken_where_the_first_has_no_room(monkeypatch, place):
    (place / "disk").mkdir()
    monkeypatch.setattr(image_cache, "PLACES", (Path("/nowhere"), place / "disk"))
    cache = DecodedCache("key", SHAPES, ALL)
    cache.put(0, image(0))
    assert np.array_equal(cache.get(0), image(0))
    cache.close()


def test_a_image_in_use_outlives_its_cache():
    cache = DecodedCache("key", SHAPES, ALL)
    cache.put(0, image(0))
    held = cache.get(0)
    cache.close()
    time.sleep(0)
    assert np.array_equal(held, image(0))

"""What a model keeps of its training images: small, quick, almost never wrong, and never believed when damaged."""

import hashlib
import struct
import zlib

import numpy as np
import pytest

from denoise.errors import UserError
from denoise.sharding import image_set
from denoise.sharding.image_set import HEADER, MAGIC, ImageSet, read_image_set

IMAGENET = 1_281_167


def hashes(count, seed=0):
    return [hashlib.sha256(f"{seed} {number}".encode()).hexdigest() for number in range(count)]


def written(tmp_path, data):
    (tmp_path / "set.bin").write_bytes(data)
    return read_image_set(tmp_path / "set.bin")


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 1000])
def test_every_image_of_a_set_is_found_in_its_file(tmp_path, count):
    images = hashes(count)
    read = written(tmp_path, ImageSet.build(images).to_bytes())
    assert read.contains(images).tolist() == [True] * count
    assert not read.contains(hashes(50, seed=1)).any()


def test_order_and_repetition_of_images_change_no_byte():
    images = hashes(100)
    assert ImageSet.build([*reversed(images), *images]).to_bytes() == ImageSet.build(images).to_bytes()


def test_images_whose_numbers_are_equal_stay_two(tmp_path, monkeypatch):
    monkeypatch.setattr(image_set, "LOW_BITS", 1)
    images = hashes(64)
    read = written(tmp_path, ImageSet.build(images).to_bytes())
    assert len(np.unique(read.numbers)) < len(read.numbers) == 64
    assert read.contains(images).all()


@pytest.fixture
def numbers(monkeypatch):
    """Make random numbers stand for hashes, as these are uniform: hashing so many images would take a minute."""
    monkeypatch.setattr(image_set, "_prefixes", lambda numbers: np.asarray(numbers, np.uint64))
    rng = np.random.default_rng(0)
    return lambda count: rng.integers(0, 1 << 64, count, np.uint64)


def test_another_image_is_taken_for_one_of_a_set_less_than_once_in_a_million(numbers):
    inside = numbers(50_000)
    images = ImageSet.build(inside)
    assert images.contains(inside).all()
    assert images.contains(numbers(4_000_000)).sum() < 4  # 1.9 are expected; 4 would be 1e-6


def test_the_set_of_imagenet_is_small(numbers):
    assert len(ImageSet.build(numbers(IMAGENET)).to_bytes()) < 3_700_000


def crafted(count, body):
    return HEADER.pack(MAGIC, count, zlib.crc32(body)) + body


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"y" + data[1:],
        lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
        lambda data: struct.pack("<8sQI", MAGIC, 1 << 62, 0) + data[20:],  # of a length that no disk holds
        lambda data: crafted(100, bytes(len(data) - 20)),  # sound, but holds other numbers than it says
        lambda data: crafted(100, b"\xff" * (len(data) - 20)),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, damage):
    data = ImageSet.build(hashes(100)).to_bytes()
    with pytest.raises(UserError, match=r"set\.bin is damaged or of another version; .*\.$"):
        written(tmp_path, damage(data))

import numpy as np
import pytest

from denoise.data.dataset import ShardedDataset
from denoise.data.shards import Shards


@pytest.fixture
def one(small_shards):
    return Shards.open(small_shards)


def test_several_sets_are_read_as_one(one):
    both = ShardedDataset([one, one])
    assert len(both) == 10
    assert both.counts == one.counts * 2
    assert np.array_equal(both.pixels(7, "clean"), one.pixels(2))
    assert (both.views(7), both.name(7)) == (("clean",), one.describe(2)["name"])
    assert both.size(7) == one.pixels(2).shape[:2]
    assert both.digest != ShardedDataset([one]).digest


def test_decoded_images_are_kept_within_the_budget(one):
    images = ShardedDataset([one])
    plain = [images.pixels(index, "clean") for index in range(5)]
    images.keep_decoded(sum(pixels.nbytes for pixels in plain[:3]))
    for _ in range(2):
        assert all(np.array_equal(images.pixels(index, "clean"), plain[index]) for index in range(5))
    first, again = (images.pixels(0, "clean") for _ in range(2))
    assert np.shares_memory(first, again)
    first, again = (images.pixels(4, "clean") for _ in range(2))
    assert not np.shares_memory(first, again)
    images.close()
    assert np.array_equal(images.pixels(0, "clean"), plain[0])


def test_shards_are_asked_for_part_by_part(one, monkeypatch):
    asked = []
    monkeypatch.setattr(type(one.store), "expect", lambda store, files: asked.extend(name for name, _ in files))
    ShardedDataset([one, one]).expect([len(one.entries) + 1, 0])
    assert asked == ["000001.json", "000001.tar", "000000.json", "000000.tar"]

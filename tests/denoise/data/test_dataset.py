import numpy as np
import pytest

from denoise.data import decoded_cache
from denoise.data.dataset import ShardedDataset
from denoise.data.shards import Shards

pytestmark = pytest.mark.smoke


@pytest.fixture
def shards(small_shards):
    return Shards.open(small_shards)


def test_several_sets_are_read_as_one(shards):
    both = ShardedDataset([shards, shards])
    assert len(both) == 10
    assert both.counts == shards.counts * 2
    assert np.array_equal(both.pixels(7, "clean"), shards.pixels(2))
    assert (both.views(7), both.name(7)) == (("clean",), shards.describe(2)["name"])
    assert both.size(7) == shards.pixels(2).shape[:2]
    assert both.digest != ShardedDataset([shards]).digest


def test_decoded_images_are_cached_within_the_budget(shards):
    images = ShardedDataset([shards])
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


def test_no_memory_is_taken_where_few_images_would_fit(shards, monkeypatch, tmp_path):
    monkeypatch.setattr(decoded_cache, "FOLDERS", (tmp_path,))
    images = ShardedDataset([shards] * 10)
    size = 10 * sum(shards.pixels(index).nbytes for index in range(5))
    assert images.decoded_size == pytest.approx(size, rel=0.7)  # of the first shard of each part
    for budget, files in ((images.decoded_size // 40, 0), (images.decoded_size // 10, 1)):
        images.keep_decoded(budget)
        assert len(list(tmp_path.iterdir())) == files
        assert np.array_equal(images.pixels(0, "clean"), shards.pixels(0))
        images.close()


def test_shards_are_announced_part_by_part(shards, monkeypatch):
    announced = []
    record = lambda store, files: announced.extend(file.name for file in files)  # noqa: E731
    monkeypatch.setattr(type(shards.store), "announce", record)
    ShardedDataset([shards, shards]).announce([len(shards.entries) + 1, 0])
    assert announced == ["000001.json", "000001.tar", "000000.json", "000000.tar"]

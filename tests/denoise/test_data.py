from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.augment import symmetries
from denoise.data import Batching, Collection, Order, batches, permuted, positions, random_crop, refuse_overlap
from denoise.errors import UserError
from denoise.scenes import PICTURE, FreshScenes
from denoise.shards import Shards, Source, write_shards


@given(st.integers(1, 2000), st.text(max_size=5))
def test_a_permutation_hits_every_index_once(count, key):
    assert sorted(permuted(index, count, key) for index in range(count)) == list(range(count))


def test_a_huge_range_needs_no_memory():
    count = 10**12 + 39
    images = {permuted(index, count, "key") for index in range(1000)}
    assert len(images) == 1000
    assert all(0 <= image < count for image in images)


def test_permutations_differ_between_keys_and_mix_well():
    count = 1000
    first, second = ([permuted(index, count, key) for index in range(count)] for key in ("0:0", "0:1"))
    assert first != second
    for order in (first, second):
        assert abs(np.corrcoef(order, range(count))[0, 1]) < 0.12  # 3.8 standard deviations
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.12


@given(st.integers(0, 5), st.integers(1, 60), st.integers(0, 3))
def test_every_epoch_visits_each_sample_once(seed, count, epoch):
    order = Order(seed, count)
    assert sorted(order.sample(epoch * count + place) for place in range(count)) == list(range(count))


@settings(max_examples=200)
@given(st.integers(1, 64), st.data())
def test_the_ranks_share_every_batch_without_gap_or_overlap(batch_size, data):
    world = data.draw(st.integers(1, batch_size))
    shares = [positions(batch_size, rank, world).tolist() for rank in range(world)]
    assert [position for share in shares for position in share] == list(range(batch_size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_workers_than_samples_in_a_batch_are_refused():
    with pytest.raises(UserError, match="batch_size=2 cannot be shared by 3 workers"):
        positions(2, 0, 3)


def crops_of(shards, ours, start=0, count=6, seed=0, batch_size=4, size=32, augment=()):
    scenes = FreshScenes(Collection([Shards.open(shards)]))
    stream = batches(scenes, Batching(seed, batch_size, size, 3, augment), ours, start)
    crops = [batch[PICTURE] for batch in islice(stream, count)]
    stream.close()
    return crops


def test_the_global_batch_is_the_same_for_every_world_size_and_restart(small_shards):
    whole = crops_of(small_shards, torch.arange(4))
    for world in (1, 2, 3, 4):
        parts = [crops_of(small_shards, positions(4, rank, world)) for rank in range(world)]
        assert all(torch.equal(torch.cat(batch), whole[step]) for step, batch in enumerate(zip(*parts, strict=True)))
    resumed = crops_of(small_shards, torch.arange(4), start=3, count=3)
    assert all(torch.equal(*pair) for pair in zip(resumed, whole[3:], strict=True))


def test_crops_differ_between_steps_and_seeds(small_shards):
    first, second = crops_of(small_shards, torch.arange(4), count=2)
    (other,) = crops_of(small_shards, torch.arange(4), count=1, seed=1)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_augmented_crops_are_the_same_crops_flipped_and_turned(small_shards):
    plain = torch.cat(crops_of(small_shards, torch.arange(4), count=16))
    turned = torch.cat(crops_of(small_shards, torch.arange(4), count=16, augment=("flip", "rotate")))
    group = symmetries(("flip", "rotate"))
    which = [
        [number for number, symmetry in enumerate(group) if torch.equal(symmetry.apply(one), other)]
        for one, other in zip(plain, turned, strict=True)
    ]
    assert all(which)
    assert {numbers[0] for numbers in which} == set(range(8))  # a symmetry is missed once in 5,000 seeds


def test_crops_reach_every_place_of_a_picture():
    pixels = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9, 1)
    corners = {(0.0, 0.0): 0, (0.999, 0.999): 2 * 9 + 5, (0.5, 0.5): 1 * 9 + 3}
    for at, corner in corners.items():
        assert round(float(random_crop(pixels, 4, at, 1)[0, 0, 0]) * 255) == corner


@pytest.mark.parametrize("shape", [(5, 40, 3), (40, 5, 1), (1, 1, 3), (32, 32, 1)])
def test_small_pictures_are_padded_by_reflection(shape):
    crop = random_crop(np.full(shape, 7, np.uint8), 32, (0.9, 0.9), 3)
    assert crop.shape == (3, 32, 32)
    assert torch.all(crop == 7 / 255)


def test_several_sets_are_read_as_one(small_shards):
    one = Shards.open(small_shards)
    both = Collection([one, one])
    assert len(both) == 10
    assert np.array_equal(both.pixels(7, "clean"), one.pixels(2))
    assert (both.views(7), both.name(7)) == (("clean",), one.describe(2)["name"])
    assert both.digest != Collection([one]).digest


def test_test_pictures_among_the_training_pictures_are_refused(small_pictures, small_shards, tmp_path):
    from denoise.images import Picture, read_picture, write_picture

    pixels = read_picture(small_pictures / "1-rocket.jpg").pixels
    write_picture(tmp_path / "other-name.png", Picture(pixels))  # the same pixels in another lossless format
    write_shards(tmp_path / "test", [Source("other-name.png", {"clean": tmp_path / "other-name.png"})], 1 << 20)
    train, test = Shards.open(small_shards), Shards.open(tmp_path / "test")
    with pytest.raises(UserError, match=r"1 pictures of the test set mine .* other-name\.png = 1-rocket\.jpg"):
        refuse_overlap([("small", train)], [("mine", test)], ())
    refuse_overlap([("small", train)], [("mine", test)], ("mine",))

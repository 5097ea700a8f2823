import shutil
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from denoise.data.augment import symmetry_group
from denoise.data.crops import as_floats, collate, random_crop
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import PLANNED, Batching, batches
from denoise.data.quarantine import Quarantine
from denoise.data.sampler import GlobalSampler
from denoise.data.samples import IMAGE, FreshNoise
from denoise.data.shards import DamagedError, Shards
from denoise.errors import UserError

pytestmark = pytest.mark.smoke


def sampler_of(images, seed=0):
    return GlobalSampler(seed, images.counts, images.digest, streams=2, window=1)


def batches_of(shards, rank=0, world=1, start=0, count=6, seed=0, batch_size=4, size=32, **spec):
    """Return (positions, crops) of some steps of a rank."""
    images = ShardedDataset([Shards.open(shards)])
    batching = Batching(seed, batch_size, size, 3, **spec)
    stream = batches(FreshNoise(images), sampler_of(images, seed), batching, rank, world, start)
    rows = [(batch.positions, batch.views[IMAGE]) for batch in islice(stream, count)]
    stream.close()
    return rows


def crops_of(shards, **options):
    return [crops for _, crops in batches_of(shards, **options)]


def test_more_workers_than_samples_in_a_batch_are_refused(small_shards):
    with pytest.raises(UserError, match="batch_size=2 cannot be shared by 3 workers"):
        batches_of(small_shards, world=3, batch_size=2)


def test_the_global_batch_is_the_same_for_every_world_size_and_restart(small_shards):
    whole = crops_of(small_shards)
    for world in (1, 2, 3, 4):
        joined = [torch.zeros_like(crops) for crops in whole]
        for rank in range(world):
            for batch, (positions, crops) in zip(joined, batches_of(small_shards, rank, world), strict=True):
                batch[positions] = crops
        assert all(torch.equal(*pair) for pair in zip(joined, whole, strict=True))
    resumed = crops_of(small_shards, start=3, count=3)
    assert all(torch.equal(*pair) for pair in zip(resumed, whole[3:], strict=True))


def test_the_number_of_threads_changes_nothing(small_shards):
    whole = crops_of(small_shards)
    for threads in (2, 3, 7):
        crops = crops_of(small_shards, threads=threads)
        assert all(torch.equal(*pair) for pair in zip(crops, whole, strict=True))


def test_several_crops_are_cut_from_one_image(small_shards):
    images = ShardedDataset([Shards.open(small_shards)])
    read = []

    class Recorded(FreshNoise):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    spec = Batching(0, 6, 32, 3, crops_per_image=3)
    stream = batches(Recorded(images), sampler_of(images), spec, 0, 1, 0)
    batch = next(stream)
    stream.close()
    assert batch.samples == [read[0]] * 3 + [read[1]] * 3
    assert read[0] != read[1]
    assert not torch.equal(batch.views[IMAGE][0], batch.views[IMAGE][1])


def test_cached_images_change_nothing(small_shards):
    plain = crops_of(small_shards)
    images = ShardedDataset([Shards.open(small_shards)])
    images.keep_decoded(100_000)
    for _ in range(2):  # from the shards, then from memory
        stream = batches(FreshNoise(images), sampler_of(images), Batching(0, 4, 32, 3), 0, 1, 0)
        crops = [batch.views[IMAGE] for batch in islice(stream, 6)]
        stream.close()
        assert all(torch.equal(*pair) for pair in zip(crops, plain, strict=True))
    images.close()


def damaged(small_shards, tmp_path):
    """Return shards whose second one is damaged, and the samples in it."""
    folder = Path(shutil.copytree(small_shards, tmp_path / "shards"))
    path = folder / "000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data))
    shards = Shards.open(folder)
    return folder, set(range(shards.ends[0], shards.ends[1]))


def test_a_damaged_sample_ends_the_run(small_shards, tmp_path):
    folder, _ = damaged(small_shards, tmp_path)
    with pytest.raises(DamagedError, match=r"000001\.tar"):
        batches_of(folder)


def test_damaged_samples_are_replaced_alike_on_every_rank(small_shards, tmp_path):
    folder, bad = damaged(small_shards, tmp_path)
    images = ShardedDataset([Shards.open(folder)])
    spec = Batching(0, 4, 32, 3)

    def read(rank, world):
        quarantine = Quarantine(limit=len(bad))
        stream = batches(FreshNoise(images), sampler_of(images), spec, rank, world, 0, quarantine=quarantine)
        rows = [(batch.positions, batch.views[IMAGE]) for batch in islice(stream, 6)]
        stream.close()
        return rows, set(quarantine.reasons)

    whole, left_out = read(0, 1)
    assert left_out == bad
    both = [read(rank, 2) for rank in range(2)]
    assert both[0][1] | both[1][1] == bad
    for step, (_, crops) in enumerate(whole):
        joined = torch.zeros_like(crops)
        for rows, _ in both:
            joined[rows[step][0]] = rows[step][1]
        assert torch.equal(joined, crops)


def test_too_many_damaged_samples_end_the_run(small_shards, tmp_path):
    folder, bad = damaged(small_shards, tmp_path)
    images = ShardedDataset([Shards.open(folder)])
    quarantine = Quarantine(limit=len(bad) - 1)
    stream = batches(FreshNoise(images), sampler_of(images), Batching(0, 4, 32, 3), 0, 1, 0, quarantine=quarantine)
    with pytest.raises(DamagedError):
        list(islice(stream, 6))


def test_shards_are_announced_before_they_are_read(small_shards):
    images = ShardedDataset([Shards.open(small_shards)])
    announced, sampler = [], sampler_of(images)
    stream = batches(FreshNoise(images), sampler, Batching(0, 2, 32, 3), 0, 1, 0, announce=announced.extend)
    for step in range(8):
        next(stream)
        needed = sampler.shards(sampler.samples(step * 2 + np.arange(2)))
        assert set(needed.tolist()) <= set(announced)
    stream.close()


def decode_threads():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "collate"))}


@pytest.mark.parametrize("threads", [1, 6])
def test_steps_are_planned_beside_the_main_thread_and_errors_reach_it(small_shards, threads):
    planners = set()

    class Watched(GlobalSampler):
        def positions_of_rank(self, sample_numbers, rank, world_size):
            planners.add(threading.current_thread().name)
            if sample_numbers[0] >= PLANNED * len(sample_numbers):
                raise RuntimeError("no more positions")
            return super().positions_of_rank(sample_numbers, rank, world_size)

    images = ShardedDataset([Shards.open(small_shards)])
    sampler = Watched(0, images.counts, images.digest, streams=2, window=1)
    stream = batches(FreshNoise(images), sampler, Batching(0, 2, 32, 3, threads=threads), 0, 1, 0)
    with pytest.raises(RuntimeError, match="no more positions"):
        list(stream)
    assert planners
    assert all(name.startswith("decode") for name in planners)
    assert not decode_threads()


def test_what_fails_in_announcing_reaches_the_main_thread(small_shards):
    def announce(shards):
        raise OSError("the cache is gone")

    images = ShardedDataset([Shards.open(small_shards)])
    stream = batches(FreshNoise(images), sampler_of(images), Batching(0, 2, 32, 3), 0, 1, 0, announce=announce)
    with pytest.raises(OSError, match="the cache is gone"):
        next(stream)
    assert not decode_threads()


def test_no_thread_outlives_a_stream_that_is_closed(small_shards):
    batches_of(small_shards, threads=6, count=PLANNED + 3)
    assert not decode_threads()


def test_crops_differ_between_steps_and_seeds(small_shards):
    first, second = crops_of(small_shards, count=2)
    (other,) = crops_of(small_shards, count=1, seed=1)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_augmented_crops_are_the_same_crops_flipped_and_turned(small_shards):
    plain = torch.cat(crops_of(small_shards, count=16))
    turned = torch.cat(crops_of(small_shards, count=16, augment=("flip", "rotate")))
    group = symmetry_group(("flip", "rotate"))
    which = [
        [number for number, symmetry in enumerate(group) if torch.equal(symmetry.apply(crop), other)]
        for crop, other in zip(plain, turned, strict=True)
    ]
    assert all(which)
    assert {numbers[0] for numbers in which} == set(range(8))  # a symmetry is missed once in 5,000 seeds


def test_crops_reach_every_place_of_an_image():
    pixels = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9, 1)
    corners = {(0.0, 0.0): 0, (0.999, 0.999): 2 * 9 + 5, (0.5, 0.5): 1 * 9 + 3}
    for at, corner in corners.items():
        assert round(float(random_crop(pixels, 4, at)[0, 0, 0])) == corner


@pytest.mark.parametrize("shape", [(5, 40, 3), (40, 5, 1), (1, 1, 3), (32, 32, 1)])
def test_small_images_are_padded_by_reflection(shape):
    crop = random_crop(np.full(shape, 7, np.uint8), 32, (0.9, 0.9))
    assert crop.shape == (shape[2], 32, 32)
    assert torch.all(crop == 7)


def test_batches_are_bytes_only_if_nothing_is_lost():
    colour, grey = torch.full((3, 2, 2), 51, dtype=torch.uint8), torch.full((1, 2, 2), 102, dtype=torch.uint8)
    both = collate([{"a": colour}, {"a": grey}], 3)["a"]
    assert (both.dtype, both.shape) == (torch.uint8, (2, 3, 2, 2))
    assert torch.equal(as_floats(both)[1], torch.full((3, 2, 2), 102 / 255))
    mixed = collate([{"a": colour}, {"a": grey}], 1)["a"]
    assert (mixed.dtype, mixed.shape) == (torch.float32, (2, 1, 2, 2))  # the mean of colours is not a whole number
    deep = random_crop(np.full((2, 2, 1), 65535, np.uint16), 2, (0, 0))
    assert collate([{"a": deep}, {"a": grey}], 1)["a"].flatten()[0] == 1.0
    level = torch.ones(1, 1, 1)
    assert collate([{"level": level}], 3)["level"].shape == (1, 1, 1, 1)

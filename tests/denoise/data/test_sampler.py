import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.data.sampler import GlobalSampler, permuted

WORLDS = (1, 2, 3, 4, 8)

shard_sizes = st.lists(st.integers(1, 20), min_size=1, max_size=16)


def keys(count, key):
    return np.full(count, key, np.uint64)


def permutation(count, key):
    return permuted(np.arange(count), np.full(count, count), keys(count, key))


def global_order(sampler, batch_size, world, steps, start=0):
    """Return the samples that all ranks together read, in the order of their positions."""
    read = []
    for step in range(start, steps):
        numbers = step * batch_size + np.arange(batch_size)
        batch, samples = np.full(batch_size, -1), sampler.samples(numbers)
        positions = [sampler.positions_of_rank(numbers, rank, world) for rank in range(world)]
        assert max(map(len, positions)) - min(map(len, positions)) <= 1
        assert min(map(len, positions)) >= 1
        for of_rank in positions:
            assert (batch[of_rank] == -1).all()
            batch[of_rank] = samples[of_rank]
        read.append(batch)
    return np.concatenate(read)


def sha256(samples):
    return hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()


@given(st.integers(1, 2000), st.integers(0, 2**64 - 1))
def test_a_permutation_hits_every_index_once(count, key):
    assert sorted(permutation(count, key)) == list(range(count))


def test_a_huge_range_needs_no_memory():
    count = 10**12 + 39
    results = permuted(np.arange(1000), np.full(1000, count), keys(1000, 7))
    assert len(set(results.tolist())) == 1000
    assert ((results >= 0) & (results < count)).all()


def test_permutations_differ_between_keys_and_mix_well():
    first, second = permutation(1000, 1), permutation(1000, 2)
    assert (first != second).any()
    for results in (first, second):
        assert abs(np.corrcoef(results, range(1000))[0, 1]) < 0.12  # 3.8 standard deviations
        assert abs(np.corrcoef(results[1:], results[:-1])[0, 1]) < 0.12


def test_every_permutation_of_a_few_is_as_likely():
    drawn = [tuple(permutation(3, key).tolist()) for key in range(6000)]
    counts = np.array([drawn.count(result) for result in sorted(set(drawn))])
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square of 5 degrees of freedom at 0.001


@settings(max_examples=200, deadline=None)
@given(shard_sizes, st.integers(0, 5), st.integers(8, 40), st.integers(1, 12), st.integers(1, 5), st.data())
def test_the_order_is_the_same_for_every_world_size_and_resume(sizes, seed, batch_size, streams, window, data):
    """More ranks than shards are among the cases."""
    sampler = GlobalSampler(seed, tuple(sizes), "digest", streams, window)
    steps = -(-2 * len(sampler) // batch_size)
    whole = global_order(sampler, batch_size, 1, steps)
    for epoch in range(2):
        assert sorted(whole[epoch * len(sampler) : (epoch + 1) * len(sampler)]) == list(range(len(sampler)))
    assert {sha256(global_order(sampler, batch_size, world, steps)) for world in WORLDS} == {sha256(whole)}
    start = data.draw(st.integers(0, steps - 1))
    resumed = global_order(GlobalSampler(seed, tuple(sizes), "digest", streams, window), batch_size, 2, steps, start)
    assert (resumed == whole[start * batch_size :]).all()


def test_a_sample_does_not_depend_on_the_others_of_a_call():
    sampler = GlobalSampler(1, (7, 3, 11, 5, 9), "digest", 2, 1)
    numbers = np.arange(100)
    assert [sampler.samples(numbers[[place]])[0] for place in numbers] == sampler.samples(numbers).tolist()


def test_the_order_is_that_of_earlier_versions():
    """Otherwise a run resumed by newer code would read some images twice."""
    sampler = GlobalSampler(3, (5, 9, 1, 12, 7, 7, 30, 2), "digest", 2, 3)
    assert sampler.samples(np.arange(2 * len(sampler))).tolist()[:12] == [17, 2, 10, 59, 15, 54, 29, 69, 23, 50, 7, 63]


@pytest.mark.parametrize("other", [{"seed": 1}, {"digest": "other"}, {"streams": 3}, {"window": 1}])
def test_every_argument_changes_the_order(other):
    given = {"seed": 0, "counts": (20,) * 12, "digest": "digest", "streams": 4, "window": 2}
    numbers = np.arange(240)
    assert (GlobalSampler(**given).samples(numbers) != GlobalSampler(**{**given, **other}).samples(numbers)).any()


def test_epochs_differ():
    sampler = GlobalSampler(0, (20,) * 12, "digest", 4, 2)
    assert (sampler.samples(np.arange(240)) != sampler.samples(np.arange(240, 480))).any()


def test_a_stream_reads_from_one_window_of_shards_at_a_time():
    sampler = GlobalSampler(0, (10,) * 64, "digest", streams=4, window=2)
    shards = sampler.shards(sampler.samples(np.arange(640)))
    for stream in range(4):
        own = shards[stream::4]
        for window in range(8):
            assert len(set(own[window * 20 : (window + 1) * 20].tolist())) == 2
        assert len(set(own.tolist())) == 16  # 64 shards dealt to 4 streams: no other stream reads these


def test_a_rank_keeps_its_streams():
    sampler = GlobalSampler(0, (10,) * 64, "digest", streams=8, window=2)
    read = [set(), set()]
    for step in range(640 // 16):
        numbers = step * 16 + np.arange(16)
        for rank in range(2):
            read[rank] |= set(
                sampler.shards(sampler.samples(numbers[sampler.positions_of_rank(numbers, rank, 2)])).tolist()
            )
    assert not read[0] & read[1]
    assert len(read[0] | read[1]) == 64


def test_samples_of_one_shard_are_spread_over_a_window():
    sampler = GlobalSampler(0, (100,) * 40, "digest", streams=1, window=10)
    samples = sampler.samples(np.arange(1000))
    assert abs(np.corrcoef(samples[1:], samples[:-1])[0, 1]) < 0.12


def test_a_set_of_one_shard_is_shuffled_whole():
    sampler = GlobalSampler(0, (500,), "digest")
    assert sampler.canonical_streams == 1
    assert abs(np.corrcoef(sampler.samples(np.arange(500)), range(500))[0, 1]) < 0.17


def test_a_billion_samples_need_memory_for_their_shards_only():
    sampler = GlobalSampler(0, (10_000,) * 100_000, "digest", streams=1024)
    tracemalloc.start()
    samples = sampler.samples(np.arange(10**9 - 256, 10**9 + 256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(samples[:256].tolist())) == 256
    assert peak < 30 * 8 * 100_000

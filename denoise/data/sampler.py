"""GlobalSampler: which sample is the n-th to be read, and by which rank, for data of any size.

The order is a pure function of (seed, epoch, digest of the data): world size, workers and history do not enter. It is
shuffled on two levels, so that data larger than a disk are read about once an epoch and yet mixed well:

1. The shards are put in a random order, and that sequence of samples is cut into a fixed number of canonical streams
   of equal length, which are read in turn: position p of an epoch belongs to stream p mod streams.
2. Within its stream a sample is drawn from a window of a few successive shards, in a random order of the window.

Finding the samples of a batch takes time and memory proportional to the batch and to the number of shards; nothing of
the size of the data is ever permuted or stored. Random bits are SplitMix64's, as in rng.py.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

ROUNDS = 6
GOLDEN, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
ROUND_KEYS = np.arange(1, ROUNDS + 1, dtype=np.uint64) * GOLDEN


def _mix(z: Bits) -> Bits:
    """SplitMix64's finaliser."""
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return z ^ (z >> np.uint64(31))


def hashed(numbers: Bits) -> Bits:
    """Return a 64-bit hash of each number."""
    return _mix((numbers + np.uint64(1)) * GOLDEN)


def permuted(index: Integers, count: Integers, key: Bits) -> Integers:
    """Return where a keyed permutation of range(count) sends each index, in constant time and memory for each.

    A Feistel network on the next even power of two, walked until it lands inside the range (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    bits = np.frexp(count - 1)[1]  # of the largest index
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = index.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():
        left, right = result[outside] >> half[outside], result[outside] & mask[outside]
        for round_key in ROUND_KEYS:
            bits_of_round = _mix(_mix(key[outside] + round_key) ^ right)
            left, right = right, left ^ (bits_of_round & mask[outside])
        result[outside] = left << half[outside] | right
        outside = result >= count.astype(np.uint64)
    return result.astype(np.int64)


@dataclass(frozen=True)
class GlobalSampler:
    """The order in which the samples of some shards are read.

    Args:
        seed: of the run.
        counts: number of samples of each shard, at least 1.
        digest: the identity of the data.
        streams: number of streams that are read in turn; fewer if there are not ``window`` shards for each.
        window: number of successive shards of a stream that a sample is drawn from.
    """

    seed: int
    counts: Sequence[int]
    digest: str
    streams: int = 64
    window: int = 4
    _epochs: dict[int, "_Epoch"] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return int(self._starts[-1])

    @cached_property
    def canonical_streams(self) -> int:
        """The number of streams, of ``window`` shards or more each."""
        return max(1, min(self.streams, len(self.counts) // self.window))

    @cached_property
    def _counts(self) -> Integers:
        return np.asarray(self.counts, np.int64)

    @cached_property
    def _starts(self) -> Integers:
        return np.concatenate([[0], np.cumsum(self._counts)])

    def samples(self, sample_numbers: Integers) -> Integers:
        """Return the samples with the given numbers, counted in reading order since the start of training."""
        epochs, positions = np.divmod(np.asarray(sample_numbers, np.int64), len(self))
        samples = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            samples[epochs == epoch] = self._epoch(int(epoch)).samples(positions[epochs == epoch])
        return samples

    def shards(self, samples: Integers) -> Integers:
        """Return the shards that hold the given samples."""
        return np.searchsorted(self._starts, samples, side="right") - 1

    def positions_of_rank(self, sample_numbers: Integers, rank: int, world_size: int) -> Integers:
        """Return the positions of a global batch that a rank reads; their counts differ by at most one between ranks.

        ``sample_numbers`` are the numbers of the batch's samples. Positions are dealt out stream by stream, so that
        every stream, and so its shards, stays with one rank as long as ``streams`` and the batch size are multiples of
        one another and of the world size.
        """
        stream = sample_numbers % len(self) % self.canonical_streams
        by_stream, size = np.lexsort((np.arange(len(sample_numbers)), stream)), len(sample_numbers)
        return np.sort(by_stream[size * rank // world_size : size * (rank + 1) // world_size])

    def _epoch(self, number: int) -> "_Epoch":
        epoch = self._epochs.get(number)
        if epoch is None:
            text = f"{self.seed}:{number}:{self.digest}".encode()
            key = np.uint64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))
            hashes = _mix(key ^ _mix(np.arange(1, len(self.counts) + 1, dtype=np.uint64) * GOLDEN))
            shards = np.argsort(hashes, kind="stable")
            epoch = self._epochs[number] = _Epoch(self, key, shards, np.cumsum(self._counts[shards]))
            for old in sorted(self._epochs)[:-2]:  # a batch may reach into the next epoch; several threads may ask
                self._epochs.pop(old, None)
        return epoch


@dataclass(frozen=True)
class _Epoch:
    """One epoch: the shards in their random order, and the position after the last sample of each."""

    sampler: GlobalSampler
    key: np.uint64
    shards: Integers
    ends: Integers

    def samples(self, positions: Integers) -> Integers:
        """Return the samples at the given positions of the epoch."""
        streams = self.sampler.canonical_streams
        stream, turn = positions % streams, positions // streams
        short, longer = divmod(len(self.sampler), streams)
        first = stream * short + np.minimum(stream, longer)
        end = first + short + (stream < longer)

        # The window: ``window`` shards of the stream, cut where the stream begins or ends.
        place = first + turn
        begin = self._shard(first)
        window = (self._shard(place) - begin) // self.sampler.window
        low_shard = begin + window * self.sampler.window
        low = np.maximum(first, np.where(low_shard > 0, self.ends[low_shard - 1], 0))
        high = np.minimum(end, self.ends[np.minimum(low_shard + self.sampler.window, len(self.shards)) - 1])
        key = _mix(self.key ^ _mix((stream * len(self.shards) + window + 1).astype(np.uint64) * GOLDEN))
        drawn = low + permuted(place - low, high - low, key)

        at = self._shard(drawn)
        shard = self.shards[at]
        return self.sampler._starts[shard] + drawn - (self.ends[at] - self.sampler._counts[shard])

    def _shard(self, place: Integers) -> Integers:
        return np.searchsorted(self.ends, place, side="right")

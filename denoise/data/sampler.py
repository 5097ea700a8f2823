"""The global order of samples, for data of any size: which sample is the n-th to be read, and who reads it.

The order is a pure function of (seed, epoch, digest of the data): world size, workers and history do not enter. It is
shuffled on two levels, so that data larger than a disk are read about once an epoch and yet mixed well:

1. The shards are put in a random order, and that row of samples is cut into a fixed number of canonical streams of
   equal length, which are read side by side: position p of an epoch belongs to stream p mod streams.
2. Within its stream a sample is drawn from a window of a few successive shards, in a random order of the window.

Finding the samples of a batch takes time and memory of the order of the batch and of the number of shards; nothing of
the size of the data is ever permuted or kept. Random bits are SplitMix64's, as in rng.py.
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
TURNS = np.arange(1, ROUNDS + 1, dtype=np.uint64) * GOLDEN


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
    found = index.astype(np.uint64)
    outside = np.ones(len(found), bool)
    while outside.any():
        left, right = found[outside] >> half[outside], found[outside] & mask[outside]
        for turn in TURNS:
            drawn = _mix(_mix(key[outside] + turn) ^ right)
            left, right = right, left ^ (drawn & mask[outside])
        found[outside] = left << half[outside] | right
        outside = found >= count.astype(np.uint64)
    return found.astype(np.int64)


@dataclass(frozen=True)
class GlobalSampler:
    """The order in which the samples of some shards are read.

    Args:
        seed: of the run.
        counts: how many samples each shard holds, none of them empty.
        digest: the identity of the data.
        streams: how many shards' streams are read side by side; fewer where there are not ``window`` shards for each.
        window: from how many successive shards of a stream a sample is drawn.
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
        """How many streams there really are."""
        return max(1, min(self.streams, len(self.counts) // self.window))

    @cached_property
    def _counts(self) -> Integers:
        return np.asarray(self.counts, np.int64)

    @cached_property
    def _starts(self) -> Integers:
        return np.concatenate([[0], np.cumsum(self._counts)])

    def samples(self, numbers: Integers) -> Integers:
        """Return the samples that are the given ones to be read since the start of training."""
        epochs, places = np.divmod(np.asarray(numbers, np.int64), len(self))
        found = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            found[epochs == epoch] = self._epoch(int(epoch)).samples(places[epochs == epoch])
        return found

    def shards(self, samples: Integers) -> Integers:
        """Return the shards that hold the given samples."""
        return np.searchsorted(self._starts, samples, side="right") - 1

    def positions_of_rank(self, numbers: Integers, rank: int, world_size: int) -> Integers:
        """Return which positions of a global batch a rank reads; the sizes of ranks differ by one at most.

        ``numbers`` are those of the batch's samples in the order. Positions are dealt out stream by stream, so that a
        stream, and so its shards, stays with one rank throughout wherever ``streams`` and the size of the batch are
        multiples of one another and of the world size.
        """
        stream = numbers % len(self) % self.canonical_streams
        dealt = np.lexsort((np.arange(len(numbers)), stream))
        return np.sort(dealt[len(numbers) * rank // world_size : len(numbers) * (rank + 1) // world_size])

    def _epoch(self, number: int) -> "_Epoch":
        found = self._epochs.get(number)
        if found is None:
            text = f"{self.seed}:{number}:{self.digest}".encode()
            key = np.uint64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))
            hashed = _mix(key ^ _mix(np.arange(1, len(self.counts) + 1, dtype=np.uint64) * GOLDEN))
            row = np.argsort(hashed, kind="stable")
            found = self._epochs[number] = _Epoch(self, key, row, np.cumsum(self._counts[row]))
            for old in sorted(self._epochs)[:-2]:  # a batch may reach into the next epoch; several threads may ask
                self._epochs.pop(old, None)
        return found


@dataclass(frozen=True)
class _Epoch:
    """One epoch of an order: the row of shards, and where each ends in it."""

    order: GlobalSampler
    key: np.uint64
    row: Integers
    ends: Integers

    def samples(self, places: Integers) -> Integers:
        """Return the samples at the given places of the epoch."""
        streams = self.order.canonical_streams
        stream, turn = places % streams, places // streams
        short, longer = divmod(len(self.order), streams)
        first = stream * short + np.minimum(stream, longer)
        end = first + short + (stream < longer)

        # The window: as many whole shards of the stream as there are in it, cut where the stream begins or ends.
        place = first + turn
        begin = self._shard(first)
        window = (self._shard(place) - begin) // self.order.window
        low_shard = begin + window * self.order.window
        low = np.maximum(first, np.where(low_shard > 0, self.ends[low_shard - 1], 0))
        high = np.minimum(end, self.ends[np.minimum(low_shard + self.order.window, len(self.row)) - 1])
        key = _mix(self.key ^ _mix((stream * len(self.row) + window + 1).astype(np.uint64) * GOLDEN))
        drawn = low + permuted(place - low, high - low, key)

        at = self._shard(drawn)
        shard = self.row[at]
        return self.order._starts[shard] + drawn - (self.ends[at] - self.order._counts[shard])

    def _shard(self, place: Integers) -> Integers:
        return np.searchsorted(self.ends, place, side="right")

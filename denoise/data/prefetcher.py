"""Prefetcher: announces the shards that a rank will read from, so that they are downloaded in time."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

from denoise.data.sampler import GlobalSampler, Integers

ANNOUNCED = 16  # steps of a window, spread over it, whose shards are announced


@dataclass
class Prefetcher:
    """Announces, once a window, the shards of some steps of that window and of the next one.

    Args:
        sampler: the order of samples.
        sample_numbers: returns the places in that order of the samples of a step's global batch.
        images_per_step: how many images a global batch reads.
        rank: whose shards are announced.
        world_size: number of ranks.
        announce: called with the shards, the most urgent first.
    """

    sampler: GlobalSampler
    sample_numbers: Callable[[int], Integers]
    images_per_step: float
    rank: int
    world_size: int
    announce: Callable[[Sequence[int]], None]
    next_step: int = -1

    def announce_from(self, step: int, threads: Executor) -> "Future[None] | None":
        """Announce the shards ahead of ``step`` in one of the threads, unless that has been done."""
        if step < self.next_step:
            return None
        sampler = self.sampler
        images_in_window = len(sampler) * sampler.window * sampler.canonical_streams / max(1, len(sampler.counts))
        stride = max(1, int(images_in_window / self.images_per_step / ANNOUNCED))
        self.next_step = step + ANNOUNCED * stride
        return threads.submit(self._announce, range(step, step + 2 * ANNOUNCED * stride, stride))

    def _announce(self, steps: Sequence[int]) -> None:
        numbers = [self.sample_numbers(step) for step in steps]
        mine = np.concatenate(
            [of_step[self.sampler.positions_of_rank(of_step, self.rank, self.world_size)] for of_step in numbers]
        )
        self.announce(list(dict.fromkeys(self.sampler.shards(self.sampler.samples(mine)).tolist())))

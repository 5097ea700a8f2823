"""From images to the batches of this rank: crops in the global order, decoded ahead by threads.

Which image stands at which position of which global batch, and which crop of it, is a function of (seed, step,
position) and of the data alone; rank and world size only say which positions are ours.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, pairwise

import numpy as np
import torch
from torch import Tensor

from denoise.data.augment import symmetry_group
from denoise.data.crops import collate, random_crop
from denoise.data.sampler import GlobalSampler, Integers
from denoise.data.samples import Sample, SampleSource
from denoise.data.shards import DamagedError
from denoise.errors import UserError
from denoise.rng import batch_rng

PREFETCH = 4  # batches decoded ahead of the step that uses them
PLANNED = 32  # steps whose random numbers are drawn at once
AHEAD = 16  # steps of a window, spread over it, whose shards are asked for in advance


@dataclass(frozen=True)
class Batching:
    """How samples become batches."""

    seed: int
    batch_size: int  # of all ranks together
    crop: int  # side of the crops, in pixels of the views
    channels: int
    augment: tuple[str, ...] = ()  # of "flip" and "rotate"
    crops_per_image: int = 1  # successive positions that show crops of one image
    threads: int = 1  # that decode
    pin: bool = False  # page-locked batches, which a GPU fetches by itself


@dataclass
class Quarantine:
    """Samples that were left out because their bytes are damaged.

    What is read in the place of such a sample follows from its number alone, so every world size trains on the same.
    """

    limit: int = 0  # how many may be; none: the first one ends the run
    found: dict[int, str] = field(default_factory=dict)  # sample -> what is wrong with it

    def add(self, sample: int, error: DamagedError) -> None:
        """Note a damaged sample.

        Raises:
            DamagedError: there are more than allowed.
        """
        self.found[sample] = str(error)
        if len(self.found) > self.limit:
            raise error


@dataclass(frozen=True)
class CropBatch:
    """The crops of this rank: (b, C, crop, crop) for every view, bytes where all were stored so, else floats."""

    positions: Tensor  # (b,) of the global batch
    views: dict[str, Tensor]
    samples: Sequence[int] = ()  # which are shown at these positions

    def parts(self, size: int) -> "Iterator[CropBatch]":
        """Yield successive parts of at most ``size`` crops."""
        for begin in range(0, len(self.positions), size):
            cut = slice(begin, begin + size)
            yield CropBatch(
                self.positions[cut], {name: view[cut] for name, view in self.views.items()}, self.samples[cut]
            )


def batches(
    source: SampleSource,
    order: GlobalSampler,
    spec: Batching,
    rank: int,
    world_size: int,
    start: int,
    quarantine: Quarantine | None = None,
    expect: Callable[[Sequence[int]], None] | None = None,
    usable: Callable[[int], bool] = lambda sample: True,
) -> Iterator[CropBatch]:
    """Yield this rank's crops of step ``start``, ``start`` + 1, ... for ever.

    Args:
        scenes: the samples.
        order: in which they are read.
        spec: how they become batches.
        rank: of this process.
        world_size: how many share each batch.
        start: the first step.
        quarantine: where damaged samples are noted; by default the first one raises.
        expect: told the shards that will be read from soon, the most urgent first; None where nothing is brought.
        usable: says which samples are read; the next one in the order stands in for another.

    Raises:
        UserError: more ranks than positions in a batch, or no usable sample.
        DamagedError: damaged samples, more than the quarantine allows.
    """
    if world_size > spec.batch_size:
        raise UserError(
            f"train.batch_size={spec.batch_size} cannot be shared by {world_size} workers; raise it or use fewer "
            "workers."
        )
    maker = _BatchPlanner(source, order, spec, quarantine or Quarantine(), usable)
    horizon = _Prefetcher(maker, rank, world_size, expect) if expect else None
    with ThreadPoolExecutor(spec.threads, "decode") as threads, ThreadPoolExecutor(1, "collate") as last:
        ahead: deque[Future[CropBatch]] = deque()
        try:
            for step, (positions, jobs) in enumerate(maker.plan(start, rank, world_size), start):
                if horizon:
                    horizon.announce(step)
                if len(jobs) == 1:
                    ahead.append(threads.submit(maker.whole, positions, jobs[0]))
                else:
                    parts = [threads.submit(maker.crops, job) for job in jobs]
                    ahead.append(last.submit(maker.joined, positions, parts))
                if len(ahead) > PREFETCH:
                    yield ahead.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            last.shutdown(wait=False, cancel_futures=True)


_Crop = tuple[int, dict[str, Tensor]]  # the sample, and its views


@dataclass(frozen=True)
class _Job:
    """Some successive crops of a batch: the numbers of their samples in the order, where to cut, how to turn."""

    numbers: Sequence[int]
    samples: Sequence[int]
    places: Sequence[Sequence[float]]
    turns: Sequence[int]

    def part(self, begin: int, end: int) -> "_Job":
        """Return some of them."""
        cut = slice(begin, end)
        return _Job(self.numbers[cut], self.samples[cut], self.places[cut], self.turns[cut])


@dataclass(frozen=True)
class _BatchPlanner:
    """Makes crops."""

    source: SampleSource
    order: GlobalSampler
    spec: Batching
    quarantine: Quarantine
    usable: Callable[[int], bool]

    def numbers(self, step: int) -> Integers:
        """Return which samples of the order stand in the global batch of a step."""
        return (step * self.spec.batch_size + np.arange(self.spec.batch_size)) // self.spec.crops_per_image

    def plan(self, start: int, rank: int, world_size: int) -> Iterator[tuple[Integers, list[_Job]]]:
        """Yield (positions, work) of a rank's share of step ``start``, ``start`` + 1, ..., for ever.

        A batch is one job, or several where there are more threads than batches in the making.
        """
        parts = -(-self.spec.threads // PREFETCH)
        for first in count(start, PLANNED):  # some steps at once: most of the time goes into calls, not into numbers
            steps = range(first, first + PLANNED)
            numbers = [self.numbers(step) for step in steps]
            positions = [self.order.positions_of_rank(one, rank, world_size) for one in numbers]
            ours = self._draw(steps, positions, [one[at] for one, at in zip(numbers, positions, strict=True)])
            begin = 0
            for share in positions:
                cuts = [begin + len(share) * part // parts for part in range(parts + 1)]
                yield share, [ours.part(a, b) for a, b in pairwise(cuts) if b > a]
                begin += len(share)

    def _draw(self, steps: Sequence[int], positions: Sequence[Integers], numbers: Sequence[Integers]) -> _Job:
        """Return the crops at the given positions of several steps, one step after another."""
        step = torch.from_numpy(np.repeat(np.asarray(steps, np.int64), [len(share) for share in positions]))
        rng = batch_rng(self.spec.seed, step, torch.from_numpy(np.concatenate(positions)))
        places = rng.stream("crop").uniform(2).tolist()
        turns = rng.stream("augment").integers(len(symmetry_group(self.spec.augment)), 1).flatten().tolist()
        joined = np.concatenate(numbers)
        return _Job(joined.tolist(), self.order.samples(joined).tolist(), places, turns)

    def whole(self, positions: Integers, job: _Job) -> CropBatch:
        """Return the batch of one job."""
        return self._batch(positions, self.crops(job))

    def joined(self, positions: Integers, parts: Sequence[Future[list[_Crop]]]) -> CropBatch:
        """Return the batch of several jobs."""
        return self._batch(positions, [crop for part in parts for crop in part.result()])

    def _batch(self, positions: Integers, crops: Sequence[_Crop]) -> CropBatch:
        views = collate([views for _, views in crops], self.spec.channels)
        if self.spec.pin:
            views = {name: view.pin_memory() for name, view in views.items()}
        return CropBatch(torch.from_numpy(positions), views, [sample for sample, _ in crops])

    def crops(self, job: _Job) -> list[_Crop]:
        """Return the crops of a job, view by view cut, flipped and turned alike, each with its sample."""
        group = symmetry_group(self.spec.augment)
        found = []
        for number, sample, place, turn in zip(job.numbers, job.samples, job.places, job.turns, strict=True):
            found_sample, scene = self.scene(number, sample)
            crops = {name: random_crop(view, self.spec.crop, place) for name, view in scene.items()}
            found.append((found_sample, {name: group[turn].apply(crop) for name, crop in crops.items()}))
        return found

    def scene(self, number: int, sample: int) -> tuple[int, Sample]:
        """Return a sample, or the next one in the order that is usable and whose bytes are sound."""
        for later in range(len(self.order)):
            if later:
                sample = int(self.order.samples(np.array([number + later]))[0])
            if sample in self.quarantine.found or not self.usable(sample):
                continue
            try:
                return sample, self.source[sample]
            except DamagedError as error:
                self.quarantine.add(sample, error)
        raise UserError(
            f"none of the {len(self.order)} training images can be used: all are smaller than the crop of "
            f"{self.spec.crop} pixels, or damaged; lower train.crop, or pad them with data.small=pad."
        )


@dataclass
class _Prefetcher:
    """Tells, once a window, which shards will be read from in it and in the next: those of some steps of both."""

    maker: _BatchPlanner
    rank: int
    world_size: int
    expect: Callable[[Sequence[int]], None]
    next: int = -1

    def announce(self, step: int) -> None:
        """Tell the shards ahead of ``step``, unless they have been told."""
        if step < self.next:
            return
        order, spec = self.maker.order, self.maker.spec
        in_window = len(order) * order.window * order.canonical_streams / max(1, len(order.counts))
        stride = max(1, int(in_window * spec.crops_per_image / spec.batch_size / AHEAD))
        self.next = step + AHEAD * stride
        batches = [self.maker.numbers(later) for later in range(step, step + 2 * AHEAD * stride, stride)]
        ours = np.concatenate(
            [numbers[order.positions_of_rank(numbers, self.rank, self.world_size)] for numbers in batches]
        )
        self.expect(list(dict.fromkeys(order.shards(order.samples(ours)).tolist())))

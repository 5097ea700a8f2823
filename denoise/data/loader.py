"""From images to the batches of one rank: crops in the global order of samples, decoded ahead by threads.

Which image stands at which position of which global batch, and which crop of it, is a function of (seed, step,
position) and of the data alone; rank and world size only decide which positions a rank reads.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
import torch
from torch import Tensor

from denoise import distributed
from denoise.config import Config
from denoise.data.augment import symmetry_group
from denoise.data.crops import collate, random_crop
from denoise.data.dataset import ShardedDataset
from denoise.data.prefetcher import Prefetcher
from denoise.data.quarantine import Quarantine
from denoise.data.sampler import GlobalSampler, Integers
from denoise.data.samples import Sample, SampleSource, crop_side, open_samples
from denoise.data.shards import DamagedError
from denoise.errors import UserError
from denoise.methods import Method
from denoise.noise import Noise
from denoise.rng import batch_rng

PREFETCH = 4  # batches decoded ahead of the step that uses them
PLANNED = 32  # steps whose random numbers are drawn at once


@dataclass(frozen=True)
class Batching:
    """How samples become batches."""

    seed: int
    batch_size: int  # of all ranks together
    crop: int  # side of the crops, in pixels of the views
    channels: int
    augment: tuple[str, ...] = ()  # of the kinds of ``symmetry_group``
    crops_per_image: int = 1  # successive positions that show crops of one image
    threads: int = 1  # threads that decode
    pin: bool = False  # page-locked batches, which a GPU copies asynchronously


@dataclass(frozen=True)
class CropBatch:
    """The crops of one rank: (b, C, crop, crop) for every view, bytes where all are stored so, else floats."""

    positions: Tensor  # (b,) in the global batch
    views: dict[str, Tensor]
    samples: Sequence[int] = ()  # the samples at these positions

    def parts(self, size: int) -> "Iterator[CropBatch]":
        """Yield successive parts of at most ``size`` crops."""
        for begin in range(0, len(self.positions), size):
            cut = slice(begin, begin + size)
            yield CropBatch(
                self.positions[cut], {name: view[cut] for name, view in self.views.items()}, self.samples[cut]
            )


def read_batches(
    config: Config,
    train_set: ShardedDataset,
    method: Method,
    noise: Noise,
    *,
    quarantine: Quarantine,
    start: int,
) -> Iterator[CropBatch]:
    """Yield this rank's batches of training images from step ``start`` on, as the configuration says."""
    data, spec = config.data, config.train
    source = open_samples(config, train_set, method, noise)
    sampler = GlobalSampler(config.seed, train_set.counts, train_set.digest, data.streams, data.window)
    batching = Batching(
        seed=config.seed,
        batch_size=spec.batch_size,
        crop=crop_side(source, spec.crop_pixels, noise),
        channels=data.channels,
        augment=spec.augment,
        crops_per_image=data.crops_per_image,
        threads=data.threads,
        pin=distributed.device().type == "cuda",
    )
    train_set.keep_decoded(data.cache_mb << 20)
    try:
        yield from batches(
            source,
            sampler,
            batching,
            distributed.rank(),
            distributed.world_size(),
            start,
            quarantine=quarantine,
            announce=None if train_set.is_local else train_set.announce,
            is_usable=lambda sample: data.small == "pad" or min(train_set.size(sample)) >= batching.crop,
        )
    finally:
        train_set.close()


def batches(
    source: SampleSource,
    sampler: GlobalSampler,
    batching: Batching,
    rank: int,
    world_size: int,
    start: int,
    *,
    quarantine: Quarantine | None = None,
    announce: Callable[[Sequence[int]], None] | None = None,
    is_usable: Callable[[int], bool] = lambda sample: True,
) -> Iterator[CropBatch]:
    """Yield the batches of a rank for step ``start``, ``start`` + 1, ..., without end.

    Args:
        source: the samples.
        sampler: their global order.
        batching: how they become batches.
        rank: of this process.
        world_size: how many ranks share each batch.
        start: the first step.
        quarantine: records damaged samples; by default the first one raises.
        announce: called with the shards that will be read from soon, the most urgent first; None if all are local.
        is_usable: whether to read a sample; if not, the next one in the order takes its place.

    Raises:
        UserError: more ranks than positions in a batch, or no usable sample.
        DamagedError: more damaged samples than the quarantine allows.
    """
    if world_size > batching.batch_size:
        raise UserError(
            f"train.batch_size={batching.batch_size} cannot be shared by {world_size} workers; raise it or use fewer "
            "workers."
        )
    planner = _BatchPlanner(source, sampler, batching, quarantine or Quarantine(), is_usable)
    images_per_step = batching.batch_size / batching.crops_per_image
    prefetcher = (
        Prefetcher(sampler, planner.sample_numbers, images_per_step, rank, world_size, announce) if announce else None
    )
    with ThreadPoolExecutor(batching.threads, "decode") as decoders, ThreadPoolExecutor(1, "collate") as collator:
        pending: deque[tuple[Future[None] | None, Future[CropBatch]]] = deque()
        try:
            for step, (positions, plans) in enumerate(planner.plan(start, rank, world_size, decoders), start):
                announcing = prefetcher.announce_from(step, decoders) if prefetcher else None
                if len(plans) == 1:
                    batch = decoders.submit(planner.read_batch, positions, plans[0])
                else:
                    parts = [decoders.submit(planner.read_crops, plan) for plan in plans]
                    batch = collator.submit(planner.join_parts, positions, parts)
                pending.append((announcing, batch))
                if len(pending) > PREFETCH:
                    announcing, batch = pending.popleft()
                    if announcing:
                        announcing.result()
                    yield batch.result()
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            collator.shutdown(wait=False, cancel_futures=True)


_Crop = tuple[int, dict[str, Tensor]]  # the sample, and its views


@dataclass(frozen=True)
class _CropPlan:
    """Successive crops of a batch: which sample each shows, where it is cut out and how it is turned."""

    sample_numbers: Sequence[int]  # places in the global order
    samples: Sequence[int]
    offsets: Sequence[Sequence[float]]  # two numbers in [0, 1) each, see ``random_crop``
    symmetries: Sequence[int]  # of ``symmetry_group``

    def part(self, begin: int, end: int) -> "_CropPlan":
        """Return the crops ``begin`` to ``end``."""
        cut = slice(begin, end)
        return _CropPlan(self.sample_numbers[cut], self.samples[cut], self.offsets[cut], self.symmetries[cut])


@dataclass(frozen=True)
class _BatchPlanner:
    """Plans the crops of a rank, and reads what is planned."""

    source: SampleSource
    sampler: GlobalSampler
    batching: Batching
    quarantine: Quarantine
    is_usable: Callable[[int], bool]

    def sample_numbers(self, step: int) -> Integers:
        """Return the places in the global order of the samples of a step's global batch."""
        batching = self.batching
        return (step * batching.batch_size + np.arange(batching.batch_size)) // batching.crops_per_image

    def plan(
        self, start: int, rank: int, world_size: int, decoders: Executor
    ) -> Iterator[tuple[Integers, list[_CropPlan]]]:
        """Yield the positions and the crops of a rank for step ``start``, ``start`` + 1, ..., without end.

        The crops of a batch come in one plan, or in several if there are more threads than batches in the making.
        While those of some steps are used, a thread of ``decoders`` plans the next ones: of a large global batch that
        takes longer than a step.
        """
        upcoming = decoders.submit(self._plan_steps, start, rank, world_size)
        for first in count(start + PLANNED, PLANNED):
            planned = upcoming.result()
            upcoming = decoders.submit(self._plan_steps, first, rank, world_size)
            yield from planned

    def _plan_steps(self, first: int, rank: int, world_size: int) -> list[tuple[Integers, list[_CropPlan]]]:
        """Return the positions and crops of several steps at once: most of the time goes into calls, not numbers."""
        parts, steps = -(-self.batching.threads // PREFETCH), range(first, first + PLANNED)
        numbers = [self.sample_numbers(step) for step in steps]
        positions = [self.sampler.positions_of_rank(of_step, rank, world_size) for of_step in numbers]
        mine = [of_step[at] for of_step, at in zip(numbers, positions, strict=True)]
        crops, begin, planned = self._draw(steps, positions, mine), 0, []
        for of_step in positions:
            cuts = [begin + len(of_step) * part // parts for part in range(parts + 1)]
            planned.append((of_step, [crops.part(a, b) for a, b in pairwise(cuts) if b > a]))
            begin += len(of_step)
        return planned

    def _draw(self, steps: Sequence[int], positions: Sequence[Integers], numbers: Sequence[Integers]) -> _CropPlan:
        """Return the crops at the given positions of several steps, one step after another."""
        step = torch.from_numpy(np.repeat(np.asarray(steps, np.int64), [len(of_step) for of_step in positions]))
        rng = batch_rng(self.batching.seed, step, torch.from_numpy(np.concatenate(positions)))
        offsets = rng.stream("crop").uniform(2).tolist()
        count = len(symmetry_group(self.batching.augment))
        symmetries = rng.stream("augment").integers(count, 1).flatten().tolist()
        joined = np.concatenate(numbers)
        return _CropPlan(joined.tolist(), self.sampler.samples(joined).tolist(), offsets, symmetries)

    def read_batch(self, positions: Integers, plan: _CropPlan) -> CropBatch:
        """Return the batch of one plan."""
        return self._collate(positions, self.read_crops(plan))

    def join_parts(self, positions: Integers, parts: Sequence[Future[list[_Crop]]]) -> CropBatch:
        """Return the batch of the crops of several plans."""
        return self._collate(positions, [crop for part in parts for crop in part.result()])

    def _collate(self, positions: Integers, crops: Sequence[_Crop]) -> CropBatch:
        views = collate([views for _, views in crops], self.batching.channels)
        if self.batching.pin:
            views = {name: view.pin_memory() for name, view in views.items()}
        return CropBatch(torch.from_numpy(positions), views, [sample for sample, _ in crops])

    def read_crops(self, plan: _CropPlan) -> list[_Crop]:
        """Return the crops of a plan, each with its sample; all views of a sample are cut and turned alike."""
        group = symmetry_group(self.batching.augment)
        crops, last = [], -1
        rows = zip(plan.sample_numbers, plan.samples, plan.offsets, plan.symmetries, strict=True)
        for number, planned, offset, symmetry in rows:
            if number != last:  # else another crop of the same image
                sample, views = self._read_sample(number, planned)
                last = number
            cut = {name: random_crop(view, self.batching.crop, offset) for name, view in views.items()}
            crops.append((sample, {name: group[symmetry].apply(crop) for name, crop in cut.items()}))
        return crops

    def _read_sample(self, number: int, sample: int) -> tuple[int, Sample]:
        """Return a sample, or the next one in the global order that is usable and intact."""
        for skipped in range(len(self.sampler)):
            if skipped:
                sample = int(self.sampler.samples(np.array([number + skipped]))[0])
            if sample in self.quarantine.reasons or not self.is_usable(sample):
                continue
            try:
                return sample, self.source[sample]
            except DamagedError as error:
                self.quarantine.add(sample, error)
        raise UserError(
            f"none of the {len(self.sampler)} training images can be used: all are smaller than the crop of "
            f"{self.batching.crop} pixels, or damaged; lower train.crop, or pad them with data.small=pad."
        )

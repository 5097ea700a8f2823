"""From shards to the batches of this rank: a global order, random crops, prefetched.

Which picture stands at which position of which global batch, and which crop of it, is a function of (seed, step,
position) and of the data alone; rank and world size only say which positions are ours.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from denoise.augment import symmetries
from denoise.errors import UserError
from denoise.images import as_channels, pad, to_tensor
from denoise.rng import batch_rng
from denoise.shards import Shards

ROUNDS = 6
PREFETCH = 4  # batches decoded ahead of the step that uses them

Scene = Mapping[str, "np.ndarray | Tensor"]  # view -> (H, W, C) pixels as they were stored, or (C, H, W) floats


class Scenes(Protocol):
    """Samples by index."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Scene:
        """Return the views of a sample, all of one size."""
        ...


def permuted(index: int, count: int, key: str) -> int:
    """Return where a keyed permutation of range(count) sends ``index``, in constant time and memory.

    A Feistel network on the next even power of two, walked until it lands inside the range (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002): nothing of the size of the data set is ever shuffled.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(ROUNDS):
            text = f"{key}:{turn}:{right}".encode()
            left, right = right, left ^ (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") & mask)
        index = left << half | right
        if index < count:
            return index


@dataclass(frozen=True)
class Order:
    """The global order of samples: every epoch visits each sample once, in an order of its own."""

    seed: int
    count: int

    def sample(self, number: int) -> int:
        """Return the sample that is the ``number``-th to be read since the start of training."""
        epoch, place = divmod(number, self.count)
        return permuted(place, self.count, f"{self.seed}:{epoch}")


@dataclass(frozen=True)
class Collection:
    """Several sets of shards read as one."""

    parts: Sequence[Shards]

    def __len__(self) -> int:
        """Return the number of samples."""
        return sum(map(len, self.parts))

    @property
    def digest(self) -> str:
        """The identity of the data: sha256 over the digests of the parts."""
        return hashlib.sha256("".join(part.digest for part in self.parts).encode()).hexdigest()

    def views(self, index: int) -> tuple[str, ...]:
        """Return the names of the pictures of a sample: one of a lone picture, several of a real pair."""
        shards, place = self._locate(index)
        return tuple(shards.describe(place)["views"])

    def pixels(self, index: int, view: str) -> np.ndarray:
        """Return one decoded picture (H, W, C) of a sample."""
        shards, place = self._locate(index)
        return shards.pixels(place, view)

    def name(self, index: int) -> str:
        """Return the name of a sample."""
        shards, place = self._locate(index)
        return str(shards.describe(place)["name"])

    def _locate(self, index: int) -> tuple[Shards, int]:
        ends = list(accumulate(map(len, self.parts)))
        number = bisect_right(ends, index)
        return self.parts[number], index - (ends[number - 1] if number else 0)


def positions(batch_size: int, rank: int, world_size: int) -> Tensor:
    """Return a rank's positions of the global batch: a contiguous slice, sizes differing by one at most."""
    if world_size > batch_size:
        raise UserError(
            f"train.batch_size={batch_size} cannot be shared by {world_size} workers; raise it or use fewer workers."
        )
    return torch.arange(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


def random_crop(view: "np.ndarray | Tensor", size: int, at: Sequence[float], channels: int) -> Tensor:
    """Return a crop (C, size, size) of pixels (H, W, C), or of floats (C, H, W); one value a picture stays as it is.

    ``at`` says where in the free range, as two numbers in [0, 1). Pictures smaller than the crop are padded by
    reflection.
    """
    height, width = view.shape[:2] if isinstance(view, np.ndarray) else view.shape[-2:]
    if isinstance(view, Tensor) and view.numel() == 1:
        return view
    top = int(at[0] * max(1, height - size + 1))
    left = int(at[1] * max(1, width - size + 1))
    rows, columns = slice(top, top + size), slice(left, left + size)
    crop = to_tensor(view[rows, columns]) if isinstance(view, np.ndarray) else view[:, rows, columns]
    crop = as_channels(crop, channels)
    return crop if crop.shape[-2:] == (size, size) else pad(crop[None], size)[0]


@dataclass(frozen=True)
class Batching:
    """How crops become batches."""

    seed: int
    batch_size: int  # of all ranks together
    crop: int  # side of the crops, in pixels of the views
    channels: int
    augment: tuple[str, ...] = ()  # of "flip" and "rotate"


def batches(scenes: Scenes, spec: Batching, ours: Tensor, start: int) -> Iterator[dict[str, Tensor]]:
    """Yield this rank's crops of step ``start``, ``start`` + 1, ... for ever: (b, C, crop, crop) for every view.

    The views of a sample are cropped, flipped and turned alike. Decoding runs in a thread, a few batches ahead.
    """
    order = Order(spec.seed, len(scenes))
    group = symmetries(spec.augment)

    def batch(step: int) -> dict[str, Tensor]:
        rng = batch_rng(spec.seed, step, ours)
        where = rng.stream("crop").uniform(2).tolist()
        turns = rng.stream("augment").integers(len(group), 1).flatten().tolist()
        samples = []
        for position, at, turn in zip(ours.tolist(), where, turns, strict=True):
            scene = scenes[order.sample(step * spec.batch_size + position)]
            crops = {name: random_crop(view, spec.crop, at, spec.channels) for name, view in scene.items()}
            samples.append({name: group[turn].apply(crop) for name, crop in crops.items()})
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        ahead = [thread.submit(batch, step) for step in range(start, start + PREFETCH)]
        step = start + PREFETCH
        try:
            while True:
                yield ahead.pop(0).result()
                ahead.append(thread.submit(batch, step))
                step += 1
        finally:
            for future in ahead:
                future.cancel()


def refuse_overlap(
    train: Sequence[tuple[str, Shards]], test: Sequence[tuple[str, Shards]], allowed: Sequence[str]
) -> None:
    """Refuse to train on pictures that are in a test set, compared by the hash of their pixels.

    Raises:
        UserError: a shared picture, unless its test set is ``allowed`` by name.
    """
    seen = {value: (name, picture) for name, shards in train for value, picture in shards.pixel_hashes().items()}
    for name, shards in test:
        if name in allowed:
            continue
        shared = [(seen[value], picture) for value, picture in shards.pixel_hashes().items() if value in seen]
        if shared:
            (train_name, train_picture), picture = shared[0]
            raise UserError(
                f"{len(shared)} pictures of the test set {name} are in the training set {train_name} "
                f"(for example {picture} = {train_picture}): scores on it would mean nothing; train on another set, "
                f"or allow it by name with data.allow_overlap={name}."
            )

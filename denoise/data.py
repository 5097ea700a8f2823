"""From shards to the batches of this rank: a global order, random crops, prefetched.

Which picture stands at which position of which global batch, and which crop of it, is a function of (seed, step,
position) and of the data alone; rank and world size only say which positions are ours.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from denoise.errors import UserError
from denoise.images import as_channels, pad, to_tensor
from denoise.rng import batch_rng
from denoise.shards import Shards

ROUNDS = 6
PREFETCH = 4  # batches decoded ahead of the step that uses them


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

    def pixels(self, index: int) -> np.ndarray:
        """Return the decoded clean picture (H, W, C) of a sample."""
        ends = list(accumulate(map(len, self.parts)))
        number = bisect_right(ends, index)
        return self.parts[number].pixels(index - (ends[number - 1] if number else 0))


class PictureCache:
    """Decoded pictures of a collection, the least recently used dropped when they outgrow a budget."""

    def __init__(self, pictures: Collection, budget: int) -> None:
        self.pictures, self.budget, self.size = pictures, budget, 0
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def pixels(self, index: int) -> np.ndarray:
        """Return the decoded picture (H, W, C) of a sample."""
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        pixels = self.pictures.pixels(index)
        self.kept[index] = pixels
        self.size += pixels.nbytes
        while self.size > self.budget and self.kept:
            self.size -= self.kept.popitem(last=False)[1].nbytes
        return pixels


def positions(batch_size: int, rank: int, world_size: int) -> Tensor:
    """Return a rank's positions of the global batch: a contiguous slice, sizes differing by one at most."""
    if world_size > batch_size:
        raise UserError(
            f"train.batch_size={batch_size} cannot be shared by {world_size} workers; raise it or use fewer workers."
        )
    return torch.arange(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


def random_crop(pixels: np.ndarray, size: int, at: Sequence[float], channels: int) -> Tensor:
    """Return a crop (C, size, size) in [0, 1]; ``at`` says where in the free range, as two numbers in [0, 1).

    Pictures smaller than the crop are padded by reflection.
    """
    height, width = pixels.shape[:2]
    top = int(at[0] * max(1, height - size + 1))
    left = int(at[1] * max(1, width - size + 1))
    crop = as_channels(to_tensor(pixels[top : top + size, left : left + size]), channels)
    return crop if crop.shape[-2:] == (size, size) else pad(crop[None], size)[0]


def batches(
    pictures: Collection,
    seed: int,
    batch_size: int,
    crop: int,
    channels: int,
    cache_bytes: int,
    ours: Tensor,
    start: int,
) -> Iterator[Tensor]:
    """Yield this rank's clean crops (b, C, crop, crop) of step ``start``, ``start`` + 1, ... for ever.

    Decoding runs in a thread, a few batches ahead.
    """
    order = Order(seed, len(pictures))
    cache = PictureCache(pictures, cache_bytes)

    def batch(step: int) -> Tensor:
        where = batch_rng(seed, step, ours).stream("crop").uniform(2).tolist()
        samples = [order.sample(step * batch_size + position) for position in ours.tolist()]
        crops = [
            random_crop(cache.pixels(sample), crop, at, channels) for sample, at in zip(samples, where, strict=True)
        ]
        return torch.stack(crops)

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

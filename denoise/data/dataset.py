"""Several sets of shards read as one, their decoded images kept in memory that the machine's processes share."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from denoise.data.decoded_cache import DecodedCache, Shape, nbytes
from denoise.data.shards import ShardFolder, Shards
from denoise.images.tensors import Pixels


@dataclass(frozen=True)
class ShardedDataset:
    """Several sets of shards read as one."""

    parts: Sequence[Shards]
    _cache: list[DecodedCache] = field(default_factory=list, compare=False, repr=False)  # one, or none

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    @property
    def digest(self) -> str:
        """The identity of the data: sha256 over the digests of the parts."""
        return hashlib.sha256("".join(part.digest for part in self.parts).encode()).hexdigest()

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each shard, part after part."""
        return tuple(count for part in self.parts for count in part.counts)

    def views(self, index: int) -> tuple[str, ...]:
        """Return the names of the images of a sample: one of a lone image, several of a real pair."""
        shards, place = self._locate(index)
        return tuple(shards.describe(place)["views"])

    def pixels(self, index: int, view: str) -> Pixels:
        """Return one decoded image (H, W, C) of a sample, to be looked at and not written to."""
        if not self._cache:
            shards, place = self._locate(index)
            return shards.pixels(place, view)
        cache, number = self._cache[0], index * len(self._views) + self._views.index(view)
        pixels = cache.get(number)
        if pixels is None:
            shards, place = self._locate(index)
            pixels = shards.pixels(place, view)
            cache.put(number, pixels)
        return pixels

    def name(self, index: int) -> str:
        """Return the name of a sample."""
        shards, place = self._locate(index)
        return str(shards.describe(place)["name"])

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of the images of a sample."""
        shards, place = self._locate(index)
        view = next(iter(shards.describe(place)["views"].values()))
        return view["height"], view["width"]

    def keep_decoded(self, budget: int) -> None:
        """Keep decoded images within a budget in bytes, shared with the other processes of this machine."""
        shapes = list(self._shapes(budget))
        if shapes:
            self._cache.append(DecodedCache(f"{self.digest}:{self._views}", shapes, budget))

    def close(self) -> None:
        """Let go of the decoded images."""
        while self._cache:
            self._cache.pop().close()

    @property
    def here(self) -> bool:
        """Whether all of it lies in folders, so that nothing has to be brought."""
        return all(isinstance(part.store, ShardFolder) for part in self.parts)

    def expect(self, shards: Iterable[int]) -> None:
        """Say which shards, counted over all parts, will be read from next, so that they can be brought in time."""
        ends = list(accumulate(len(part.entries) for part in self.parts))
        for number in shards:
            part = bisect_right(ends, number)
            self.parts[part].expect(number - (ends[part - 1] if part else 0))

    @cached_property
    def _views(self) -> tuple[str, ...]:
        """All views that samples have; those of a set are alike."""
        return tuple(sorted({view for part in self.parts for view in part.describe(0)["views"]}))

    def _shapes(self, budget: int) -> Iterator[Shape]:
        """Yield the shapes of the first images, view by view, until they exceed the budget."""
        size = 0
        for shards in self.parts:
            for number in range(len(shards.entries)):
                for sample in shards.samples(number):
                    for view in self._views:
                        shape = _shape(sample["views"].get(view))
                        size += nbytes(shape)
                        if size > budget:
                            return
                        yield shape

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part) for part in self.parts))

    def _locate(self, index: int) -> tuple[Shards, int]:
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)


def _shape(view: "dict[str, Any] | None") -> Shape:
    if view is None:
        return 0, 0, 1, "uint8"
    mode, _, deep = view["mode"].partition(";")
    return view["height"], view["width"], len(mode), "uint16" if deep else "uint8"

"""ShardedDataset: several sets of shards read as one, with a cache of decoded images that processes share."""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from denoise.data.decoded_cache import DecodedCache, Shape, nbytes
from denoise.data.index import View, read_mode
from denoise.data.shards import ShardFolder, Shards
from denoise.errors import UserError
from denoise.images.tensors import Pixels
from denoise.stacks.value_range import ValueRange

PLANE = re.compile(r"[a-z]\d+(?:_[a-z]\d+)*")  # name of a plane of a stack, such as t003_c1
MIN_CACHED = 0.03  # of all images, what a cache of decoded images has to hold: no more than this share of reads hit it


@dataclass(frozen=True)
class ShardedDataset:
    """Several sets of shards read as one.

    Attributes:
        parts: the sets.
        assumed_range: the range to read those in that have one, such as that of a model; None: their own.
    """

    parts: Sequence[Shards]
    assumed_range: ValueRange | None = None
    _cache: list[DecodedCache] = field(default_factory=list, compare=False, repr=False)  # one cache, or none

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    @property
    def digest(self) -> str:
        """The identity of the data: sha256 over the digests of the parts."""
        return hashlib.sha256("".join(part.digest for part in self.parts).encode()).hexdigest()

    @cached_property
    def value_range(self) -> ValueRange | None:
        """The values that are 0 and 1 in what is read; None: the ends of each image's type.

        Raises:
            UserError: some sets have a range and others have none.
        """
        if self.assumed_range is not None:
            return self.assumed_range
        ranges = [part.value_range for part in self.parts if part.value_range is not None]
        if not ranges:
            return None
        if len(ranges) < len(self.parts):
            names = ", ".join(part.name for part in self.parts if part.value_range is None)
            raise UserError(
                f"{names} has no range of values and another set has one, so no model fits both; give it one with "
                "`denoise shard NAME --from FOLDER --range LOW,HIGH`, or train on one of them."
            )
        return ValueRange(min(found.low for found in ranges), max(found.high for found in ranges))

    def require_one_range(self) -> None:
        """Raise UserError where some sets have a range and others have none."""
        _ = self.value_range

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each shard, over all parts in order."""
        return tuple(count for part in self.parts for count in part.counts)

    def views(self, index: int) -> tuple[str, ...]:
        """Return the names of the images of a sample: one for a single image, several for a real pair."""
        shards, offset = self._locate(index)
        return tuple(shards.describe(offset)["views"])

    def pixels(self, index: int, view: str) -> Pixels:
        """Return one decoded image (H, W, C) of a sample, which is read-only.

        It is as stored, or float32 in units of ``value_range`` where its set has one.

        Raises:
            DamagedError: its bytes differ from the index.
        """
        if not self._cache or view not in self._views:
            return self._read(index, view)
        cache, number = self._cache[0], index * len(self._views) + self._views.index(view)
        pixels = cache.get(number)
        if pixels is None:
            pixels = self._read(index, view)
            cache.put(number, pixels)
        return pixels

    def _read(self, index: int, view: str) -> Pixels:
        shards, offset = self._locate(index)
        pixels = shards.pixels(offset, view)
        return pixels if shards.value_range is None or self.value_range is None else self.value_range.to_unit(pixels)

    def name(self, index: int) -> str:
        """Return the name of a sample."""
        shards, offset = self._locate(index)
        return str(shards.describe(offset)["name"])

    def neighbour(self, index: int) -> int | None:
        """Return the next sample of the same series, of the last one the sample before; None of a single one.

        The frames of a burst or a series have names in order in a folder of their own. Of the planes of a stack those
        of successive times are a series, else those along its first axis.
        """
        own = self._series(index)
        for step in (1, -1):
            other = index + step
            while 0 <= other < len(self) and (series := self._series(other))[:2] == own[:2]:
                if series == own:
                    return other
                other += step
        return None

    def _series(self, index: int) -> tuple[int, str, str]:
        """Return what the samples of one series have in common: their set, their folder, their place in other axes."""
        folder, _, name = self.name(index).rpartition("/")
        axes = name.split("_") if PLANE.fullmatch(name) else [""]
        along = next((axis for axis in axes if axis.startswith("t")), axes[0])
        return bisect_right(self._ends, index), folder, "_".join(axis for axis in axes if axis != along)

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of the images of a sample."""
        shards, offset = self._locate(index)
        view = next(iter(shards.describe(offset)["views"].values()))
        return view["height"], view["width"]

    def keep_decoded(self, budget: int) -> None:
        """Cache decoded images, up to ``budget`` bytes that the processes of this machine share.

        Nothing is cached, and no memory taken, where so few of the images fit that they would hardly ever be read.
        """
        if budget < MIN_CACHED * self.decoded_size:
            return
        shapes = list(self._shapes(budget))
        if shapes:
            ranged = "" if self.value_range is None else f":{self.value_range.low!r}:{self.value_range.high!r}"
            self._cache.append(DecodedCache(f"{self.digest}:{self._views}{ranged}", shapes, budget))

    def close(self) -> None:
        """Release the cache."""
        while self._cache:
            self._cache.pop().close()

    @cached_property
    def decoded_size(self) -> int:
        """About how many bytes all images decoded are, by those of the first shard of each part."""
        size = 0
        for part in self.parts:
            shapes = [_shape(part, sample["views"].get(view)) for sample in part.samples(0) for view in self._views]
            size += sum(map(nbytes, shapes)) * len(part) // part.counts[0]
        return size

    @property
    def is_local(self) -> bool:
        """Whether all shards are in folders, so that none has to be downloaded."""
        return all(isinstance(part.store, ShardFolder) for part in self.parts)

    def announce(self, shards: Iterable[int]) -> None:
        """Announce that these shards, counted over all parts, will be read from soon, so that they are fetched."""
        ends = list(accumulate(len(part.entries) for part in self.parts))
        for number in shards:
            part = bisect_right(ends, number)
            self.parts[part].announce(number - (ends[part - 1] if part else 0))

    @cached_property
    def _views(self) -> tuple[str, ...]:
        """The views of all parts; the samples of a part have the same views."""
        return tuple(sorted({view for part in self.parts for view in part.describe(0)["views"]}))

    def _shapes(self, budget: int) -> Iterator[Shape]:
        """Yield the shapes of the first images, view by view, as many as fit into the budget."""
        size = 0
        for shards in self.parts:
            for number in range(len(shards.entries)):
                for sample in shards.samples(number):
                    for view in self._views:
                        shape = _shape(shards, sample["views"].get(view))
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


def _shape(shards: Shards, view: View | None) -> Shape:
    """Return the shape of an image as it is read."""
    if view is None:
        return 0, 0, 1, "uint8"
    channels, dtype = read_mode(view["mode"])
    return view["height"], view["width"], channels, dtype if shards.value_range is None else "float32"

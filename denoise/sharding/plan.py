"""The plan of a sharded data set: its samples, which images become samples, and which samples go into which shard.

Samples are divided into shards by the sizes of their files alone, before any is opened. So each shard can be written on
its own: many processes can work in parallel, an interrupted run continues with the missing shards, and neither changes
a byte. Nothing of the size of the data set is held in memory.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from denoise.data.shards import FORMAT
from denoise.sharding.planes import Plane


@dataclass(frozen=True)
class Source:
    """One sample to be sharded: its name and the file of each view ("clean", or "clean" and "noisy" of a real pair)."""

    name: str
    views: Mapping[str, Path]
    plane: Plane | None = None  # of the one file, which is a stack

    @property
    def bytes(self) -> int:
        """About how much it takes in a shard."""
        return self.plane.bytes if self.plane else sum(path.stat().st_size for path in self.views.values())


@dataclass(frozen=True)
class SampleFilter:
    """Which images become samples."""

    min_side: int | None = None  # of both sides, in pixels
    max_side: int | None = None
    only: str | None = None  # grey or colour
    skip_broken: bool = False  # leave out what does not decode instead of failing

    def excludes(self, view: Mapping[str, Any]) -> bool:
        """Return whether an image is left out for its size or its colour."""
        sides = (view["width"], view["height"])
        grey = view["mode"].startswith("L")
        return (
            min(sides) < (self.min_side or 0)
            or max(sides) > (self.max_side or max(sides))
            or (self.only == "grey" and not grey)
            or (self.only == "colour" and grey)
        )


ALL_IMAGES = SampleFilter()


@dataclass(frozen=True)
class ShardPlan:
    """The samples that go into one tar."""

    number: int
    sources: tuple[Source, ...]
    measured: bool = False  # whether the values of all images are looked at, not only those of planes

    def identity(self, sample_filter: SampleFilter) -> str:
        """Return the digest of all that decides the tar's bytes, as far as file sizes and times show it."""
        files = [
            (source.name, view, str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
            for source in self.sources
            for view, path in sorted(source.views.items())
        ]
        planes = [asdict(source.plane) for source in self.sources if source.plane]
        more = [planes, self.measured] if planes or self.measured else []
        tree = [FORMAT, self.number, asdict(sample_filter), files, *more]
        return hashlib.sha256(json.dumps(tree).encode()).hexdigest()


def plan_shards(sources: Iterable[Source], max_bytes: int, measured: bool = False) -> Iterator[ShardPlan]:
    """Yield shards of successive sources, each closed when its files reach ``max_bytes``."""
    number, size, shard_sources = 0, 0, list[Source]()
    for source in sources:
        shard_sources.append(source)
        size += source.bytes
        if size >= max_bytes:
            yield ShardPlan(number, tuple(shard_sources), measured)
            number, size, shard_sources = number + 1, 0, []
    if shard_sources:
        yield ShardPlan(number, tuple(shard_sources), measured)

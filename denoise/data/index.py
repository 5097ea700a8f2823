"""What the index of a set of shards and the lists of samples hold: checked, since anybody may have written them.

File names and checksums of an index become paths, its numbers become sizes in memory. So names and checksums have a
form, numbers have bounds, and what describes a shard has to fit into it.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import FailFast, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

T = TypeVar("T")
LARGEST_INDEX = 1 << 26  # bytes: 200 000 shards
BLOCK = 512  # bytes of a tar's header; a sample has two members at least

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=1 << 24)]  # pixels
Place = Annotated[int, Field(ge=0, le=1 << 44)]  # bytes


class Entry(TypedDict):
    """A shard: its tar, and the list of its samples."""

    file: Annotated[str, Field(pattern=r"^[0-9]{6,12}\.tar$")]
    bytes: Annotated[int, Field(ge=1, le=1 << 44)]
    sha256: Sha256
    samples: Annotated[int, Field(ge=1, le=1 << 31)]
    samples_bytes: Annotated[int, Field(ge=1, le=1 << 30)]
    samples_sha256: Sha256


class View(TypedDict):
    """One image of a sample, and its place in the tar."""

    width: Side
    height: Side
    mode: Literal["L", "RGB", "L;16", "RGB;16"]
    quick: bool  # whether the quick decoder gives the same pixels
    pixels: Sha256
    grey: Sha256  # ``grey_hash``
    look: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]  # ``perceptual_hash``
    crc32: Annotated[int, Field(ge=0, lt=1 << 32)]
    offset: Place
    bytes: Place


class SampleEntry(TypedDict):
    """A sample."""

    name: Annotated[str, Field(min_length=1, max_length=4096)]
    views: Annotated[dict[str, View], Field(min_length=1, max_length=16)]


class _Header(TypedDict):
    format: int


class _Index(TypedDict):
    shards: Annotated[list[Entry], FailFast(), Field(min_length=1)]


_HEADER, _INDEX = TypeAdapter(_Header), TypeAdapter(_Index)
_SAMPLES = TypeAdapter(Annotated[list[SampleEntry], FailFast()])


def read_format(index: bytes) -> int:
    """Return the number of the format of an index; ValueError, with the reason, if it is none."""
    if len(index) > LARGEST_INDEX:
        raise ValueError(f"it has {len(index)} bytes, more than the {LARGEST_INDEX} that are read")
    return _validated(_HEADER, index)["format"]


def read_entries(index: bytes) -> tuple[Entry, ...]:
    """Return the shards of an index; ValueError, with the reason, if one is described wrongly."""
    entries = _validated(_INDEX, index)["shards"]
    for entry in entries:
        if entry["samples"] * 2 * BLOCK > entry["bytes"] or entry["samples"] > entry["samples_bytes"]:
            raise ValueError(f"{entry['file']} is too small for {entry['samples']} samples")
    if len({entry["file"] for entry in entries}) < len(entries):
        raise ValueError("it names a shard twice")
    return tuple(entries)


def read_samples(text: bytes, entry: Entry) -> Sequence[SampleEntry]:
    """Return the samples of a shard; ValueError, with the reason, if its list does not fit it."""
    samples = _validated(_SAMPLES, text)
    if len(samples) != entry["samples"]:
        raise ValueError(f"it lists {len(samples)} samples, not the {entry['samples']} of the index")
    for sample in samples:
        for view in sample["views"].values():
            if view["offset"] + view["bytes"] > entry["bytes"]:
                raise ValueError(f"{sample['name'][:80]!r} lies outside of {entry['file']}")
    return samples


def _validated(adapter: TypeAdapter[T], text: bytes) -> T:
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None

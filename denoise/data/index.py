"""What the index of a set of shards and the lists of samples hold: checked, since anybody may have written them.

File names and checksums of an index become paths, its numbers become sizes in memory. So names and checksums have a
form, numbers have bounds, and what describes a shard has to fit into it. What was checked is held in one array: of
100,000 shards that is 10 MB in every worker, a tenth of what they take as dictionaries.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NamedTuple, NotRequired

import numpy as np
from pydantic import FailFast, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

LARGEST_INDEX = 1 << 26  # bytes: 200 000 shards
MOST_VALUES = LARGEST_INDEX >> 5  # of an index: a shard has six in some 250 bytes
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


class ShardFile(NamedTuple):
    """A file of a set of shards: a tar, or the list of its samples."""

    name: str
    size: int  # bytes
    sha256: str


class Entries:
    """The shards of an index, in order; each is made an ``Entry`` when it is asked for."""

    _ROW = np.dtype(
        [
            ("file", "S16"),
            ("bytes", np.int64),
            ("sha256", "V32"),
            ("samples", np.int64),
            ("samples_bytes", np.int64),
            ("samples_sha256", "V32"),
        ]
    )

    def __init__(self, entries: Sequence[Entry]) -> None:
        rows = (
            (
                entry["file"].encode(),
                entry["bytes"],
                bytes.fromhex(entry["sha256"]),
                entry["samples"],
                entry["samples_bytes"],
                bytes.fromhex(entry["samples_sha256"]),
            )
            for entry in entries
        )
        self._rows = np.fromiter(rows, self._ROW, len(entries))

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self._rows)

    def __getitem__(self, number: int) -> Entry:
        """Return a shard."""
        file, size, sha256, samples, samples_bytes, samples_sha256 = self._rows[number].item()
        return {
            "file": file.decode(),
            "bytes": size,
            "sha256": bytes(sha256).hex(),
            "samples": samples,
            "samples_bytes": samples_bytes,
            "samples_sha256": bytes(samples_sha256).hex(),
        }

    def __iter__(self) -> Iterator[Entry]:
        """Yield the shards."""
        return (self[number] for number in range(len(self)))

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each shard."""
        return tuple(self._rows["samples"].tolist())


TYPES_OF_MODES = {"": "uint8", "16": "uint16", **{name: name for name in ("int8", "int16", "float16", "float32")}}
CHANNELS_OF_MODES = {"L": 1, "RGB": 3}


def mode_of(channels: int, dtype: str) -> str:
    """Return what an index calls images of 1 or 3 channels and that type: ``L``, ``RGB;16``, ``L;float32``."""
    kind = next(kind for kind, count in CHANNELS_OF_MODES.items() if count == channels)
    suffix = next(suffix for suffix, name in TYPES_OF_MODES.items() if name == dtype)
    return f"{kind};{suffix}" if suffix else kind


def read_mode(mode: str) -> tuple[int, str]:
    """Return channels and type of images that an index calls ``mode``."""
    kind, _, suffix = mode.partition(";")
    return CHANNELS_OF_MODES[kind], TYPES_OF_MODES[suffix]


class View(TypedDict):
    """One image of a sample, and its place in the tar."""

    width: Side
    height: Side
    mode: Annotated[str, Field(pattern="^(L|RGB)(;(16|int8|int16|float16|float32))?$")]  # ``mode_of``
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


class _Range(TypedDict):
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]


class _Header(TypedDict):
    format: int


class _Index(TypedDict):
    shards: Annotated[list[Entry], FailFast(), Field(min_length=1)]


class _Ranged(TypedDict):
    range: NotRequired[_Range]  # the values of its images that are 0 and 1 for a network


_HEADER, _INDEX, _RANGED = TypeAdapter(_Header), TypeAdapter(_Index), TypeAdapter(_Ranged)
_SAMPLES = TypeAdapter(Annotated[list[SampleEntry], FailFast()])


def read_index(index: bytes) -> tuple[int, object]:
    """Return the number of the format of an index, and its content for ``read_entries``.

    Raises:
        ValueError: it is no index; the reason.
    """
    if len(index) > LARGEST_INDEX:
        raise ValueError(f"it has {len(index)} bytes, more than the {LARGEST_INDEX} that are read")
    if index.count(b",") > MOST_VALUES:
        raise ValueError(f"it holds more than the {MOST_VALUES} values that are read")
    # Not by ``validate_json``: what that takes in memory stays with the process.
    content = from_json(index, cache_strings="keys")
    with _explained():
        return _HEADER.validate_python(content, strict=True)["format"], content


def read_entries(content: object) -> Entries:
    """Return the shards of an index; ValueError, with the reason, if one is described wrongly."""
    with _explained():
        entries = _INDEX.validate_python(content, strict=True)["shards"]
    for entry in entries:
        if entry["samples"] * 2 * BLOCK > entry["bytes"] or entry["samples"] > entry["samples_bytes"]:
            raise ValueError(f"{entry['file']} is too small for {entry['samples']} samples")
    if len({entry["file"] for entry in entries}) < len(entries):
        raise ValueError("it names a shard twice")
    return Entries(entries)


def read_range(content: object) -> tuple[float, float] | None:
    """Return the range in an index, low and high, None where it has none; ValueError if it is none."""
    with _explained():
        stored = _RANGED.validate_python(content, strict=True).get("range")
    if stored is None:
        return None
    if not stored["low"] < stored["high"]:
        raise ValueError(f"its range from {stored['low']} to {stored['high']} is none")
    return stored["low"], stored["high"]


def list_name(tar: str) -> str:
    """Return the name of the file that lists the samples of a tar."""
    return tar.removesuffix(".tar") + ".json"


def tar_of(entry: Entry) -> ShardFile:
    """Return the tar of a shard."""
    return ShardFile(entry["file"], entry["bytes"], entry["sha256"])


def list_of(entry: Entry) -> ShardFile:
    """Return the list of a shard's samples."""
    return ShardFile(list_name(entry["file"]), entry["samples_bytes"], entry["samples_sha256"])


def read_samples(text: bytes, entry: Entry) -> Sequence[SampleEntry]:
    """Return the samples of a shard; ValueError, with the reason, if its list does not fit it."""
    with _explained():
        samples = _SAMPLES.validate_json(text, strict=True)
    if len(samples) != entry["samples"]:
        raise ValueError(f"it lists {len(samples)} samples, not the {entry['samples']} of the index")
    for sample in samples:
        for view in sample["views"].values():
            if view["offset"] + view["bytes"] > entry["bytes"]:
                raise ValueError(f"{sample['name'][:80]!r} lies outside of {entry['file']}")
    return samples


@contextmanager
def _explained() -> Iterator[None]:
    """Turn a ValidationError of the block into a ValueError that says what is wrong first."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None

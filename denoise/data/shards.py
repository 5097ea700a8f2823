"""Shards: WebDataset tars of original image bytes, read by index through the lists that lie beside them.

A folder of shards holds

    index.json         the shards in order: file, bytes, sha256, number of samples, sha256 of its list of samples
    000000.tar ...     for each sample the encoded image(s) as they came, and a JSON member describing them
    000000.json ...    the samples of one shard: names, offsets, checksums, image sizes, hashes of the pixels

The index identifies the data, and nothing is used unchecked: a file's sha256 when it is first opened, and the checksum
of an image's bytes each time. A ``ShardStore`` says where the files are: in a folder, or brought from elsewhere.
"""

import hashlib
import json
import os
import re
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from denoise.errors import UserError
from denoise.files import file_digest
from denoise.images.io import decode_quickly, read_image
from denoise.images.tensors import Pixels

FORMAT = 2
INDEX = "index.json"


def list_name(tar: str) -> str:
    """Return the file that lists the samples of a tar."""
    return tar.removesuffix(".tar") + ".json"


FILES_OPEN = 64  # at once, of a folder
LISTS_KEPT = 512  # lists of samples that a process keeps in memory: more than a batch's windows hold
ENTRY = {"file": str, "bytes": int, "sha256": str, "samples": int, "samples_bytes": int, "samples_sha256": str}
AGAIN = "make the shards again with `denoise shard NAME`"


class DamagedError(UserError):
    """Bytes that are not those of the index."""


class ShardStore(Protocol):
    """Where the files of a set of shards are."""

    def read(self, name: str, sha256: str, offset: int, size: int) -> bytes:
        """Return some bytes of the file with this sha256; DamagedError where there is none."""
        ...

    def expect(self, files: Sequence[tuple[str, str]]) -> None:
        """Prepare to read these (name, sha256) soon, the most urgent first."""
        ...

    def drop(self, name: str, sha256: str) -> bool:
        """Forget a copy that has turned out to be damaged; say whether another one can be had."""
        ...


class _Descriptor:
    """A file descriptor that is closed when the last thread that reads from it has let go of it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number)


@dataclass(frozen=True)
class ShardFolder:
    """A store whose files all lie in one folder."""

    path: Path
    _sound: set[str] = field(default_factory=set, compare=False, repr=False)
    _files: dict[str, _Descriptor] = field(default_factory=dict, compare=False, repr=False)

    def read(self, name: str, sha256: str, offset: int, size: int) -> bytes:
        """Read from a file, the first time checked as a whole; it stays open."""
        file = self._files.get(name) or self._open(name, sha256)
        return os.pread(file.number, size, offset)

    def expect(self, files: Sequence[tuple[str, str]]) -> None:
        """Do nothing: they are here."""

    def drop(self, name: str, sha256: str) -> bool:
        """There is no other copy."""
        return False

    def _open(self, name: str, sha256: str) -> _Descriptor:
        path = self.path / name
        try:
            file = _Descriptor(path)
        except FileNotFoundError:
            raise DamagedError(f"shard {path} is missing; {AGAIN}.") from None
        if name not in self._sound:
            if file_digest(path) != sha256:
                raise DamagedError(f"{path} has another sha256 than the index says: its bytes changed; {AGAIN}.")
            self._sound.add(name)
        for old in list(self._files)[: 1 - FILES_OPEN]:
            self._files.pop(old, None)
        self._files[name] = file
        return file


@dataclass(frozen=True)
class Shards:
    """Shards, read by index."""

    name: str  # to call them by in errors
    entries: tuple[Mapping[str, Any], ...]
    digest: str  # sha256 of index.json: the identity of the data
    store: ShardStore = field(compare=False)
    _lists: "OrderedDict[int, list[dict[str, Any]]]" = field(default_factory=OrderedDict, compare=False, repr=False)

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Open a folder of shards: read the index, and check that every shard is there in its full size.

        Raises:
            UserError: no index, or one that is not understood.
            DamagedError: a shard that is missing or of another size.
        """
        path = folder / INDEX
        if not path.is_file():
            raise UserError(f"{folder} holds no shards ({INDEX} is missing); make them with `denoise shard NAME`.")
        shards = cls.read(str(folder), path.read_bytes(), ShardFolder(folder))
        for entry in shards.entries:
            tar = folder / entry["file"]
            size = tar.stat().st_size if tar.is_file() else None
            if size != entry["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
                raise DamagedError(f"shard {tar} {found}; {AGAIN}.")
        return shards

    @classmethod
    def read(cls, name: str, index: bytes, store: ShardStore) -> "Shards":
        """Return the shards of an index whose files are in ``store``; UserError for an index that is not understood."""
        try:
            tree = json.loads(index)
            version, entries = tree["format"], tuple(tree["shards"])
        except (ValueError, KeyError, TypeError):
            raise DamagedError(f"{name}/{INDEX} is not an index of shards; {AGAIN}.") from None
        if version != FORMAT:
            raise UserError(f"{name}/{INDEX} is an index of format {version}, expected {FORMAT}; {AGAIN}.")
        if not entries or not all(_is_entry(entry) for entry in entries):
            raise DamagedError(f"{name}/{INDEX} has lines that describe no shard: its bytes changed; {AGAIN}.")
        return cls(name, entries, hashlib.sha256(index).hexdigest(), store)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each shard."""
        return tuple(entry["samples"] for entry in self.entries)

    @cached_property
    def ends(self) -> list[int]:
        """The index after the last sample of each shard."""
        return list(accumulate(self.counts))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.ends[-1]

    def describe(self, index: int) -> Mapping[str, Any]:
        """Return what is known of a sample: name, and for each view size, mode, hashes, checksum and place."""
        number, place = self._locate(index)
        return self.samples(number)[place]

    def pixels(self, index: int, view: str = "clean") -> Pixels:
        """Return the decoded image (H, W, C) of a sample.

        Raises:
            DamagedError: its bytes differ from the index.
        """
        described = self.describe(index)["views"][view]
        data = self.encoded(index, view)
        pixels = decode_quickly(data, 1 if described["mode"].startswith("L") else 3) if described["quick"] else None
        return read_image(data).pixels if pixels is None else pixels

    def encoded(self, index: int, view: str = "clean") -> bytes:
        """Return the bytes of one image of a sample, as they were sharded.

        Raises:
            DamagedError: they differ from the index.
        """
        number, place = self._locate(index)
        sample, entry = self.samples(number)[place], self.entries[number]
        described = sample["views"][view]
        while True:
            data = self.store.read(entry["file"], entry["sha256"], described["offset"], described["bytes"])
            if zlib.crc32(data) == described["crc32"]:
                return data
            if not self.store.drop(entry["file"], entry["sha256"]):
                raise DamagedError(
                    f"shard {self.name}/{entry['file']} has changed since it was checked: {sample['name']} has another "
                    f"checksum than the index says; {AGAIN}."
                )

    def samples(self, number: int) -> list[dict[str, Any]]:
        """Return the list of a shard's samples.

        Raises:
            DamagedError: it is not the one of the index.
        """
        kept = self._lists.get(number)
        if kept is None:
            entry = self.entries[number]
            kept = json.loads(self._list(entry))
            if len(kept) != entry["samples"]:
                raise DamagedError(
                    f"{self.name}/{INDEX} says that {entry['file']} has {entry['samples']} samples, its list has "
                    f"{len(kept)}: its bytes changed; {AGAIN}."
                )
            self._lists[number] = kept
            while len(self._lists) > LISTS_KEPT:
                self._lists.popitem(last=False)
        return kept

    def _list(self, entry: Mapping[str, Any]) -> bytes:
        name, sha256 = list_name(entry["file"]), entry["samples_sha256"]
        while True:
            data = self.store.read(name, sha256, 0, entry["samples_bytes"])
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            if not self.store.drop(name, sha256):
                raise DamagedError(f"{self.name}/{name} has another sha256 than the index says; {AGAIN}.")

    def expect(self, number: int) -> None:
        """Say that a shard will be read from soon."""
        entry = self.entries[number]
        self.store.expect(
            [(list_name(entry["file"]), entry["samples_sha256"]), (entry["file"], entry["sha256"])],
        )

    def fingerprints(self) -> Iterator[tuple[str, str, str]]:
        """Yield (name, grey hash, look) of every image in the set."""
        for number in range(len(self.entries)):
            yield from self.fingerprints_of(number)

    def fingerprints_of(self, number: int) -> Iterator[tuple[str, str, str]]:
        """Yield (name, grey hash, look) of every image of a shard."""
        for sample in self.samples(number):
            for view in sample["views"].values():
                yield sample["name"], view["grey"], view["look"]

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self.ends, index)
        return number, index - self.ends[number] + self.counts[number]


def _is_entry(entry: Any) -> bool:
    """Say whether a line of an index has what it must have; its file cannot lead out of the folder."""
    return (
        isinstance(entry, Mapping)
        and entry.keys() >= ENTRY.keys()
        and all(isinstance(entry[key], kind) for key, kind in ENTRY.items())
        and re.fullmatch(r"\d{6,}\.tar", entry["file"]) is not None
        and entry["samples"] > 0
    )

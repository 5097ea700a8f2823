"""Shards: WebDataset tars of the original image bytes, read by index with the help of lists beside them.

A folder of shards holds

    index.json         the shards in order: file, bytes, sha256, number of samples, sha256 of its list of samples
    000000.tar ...     for each sample the encoded image(s), unchanged, and a JSON member describing them
    000000.json ...    the samples of one shard: names, offsets, checksums, image sizes, hashes of the pixels

The index identifies the data, and everything is verified: a file's sha256 when it is first opened, and the checksum of
an image's bytes at every read. A ``ShardStore`` provides the files, from a folder or from a remote place.
"""

import hashlib
import os
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from denoise.data.decoding import decode_stored
from denoise.data.index import (
    LARGEST_INDEX,
    Entries,
    Entry,
    SampleEntry,
    ShardFile,
    list_name,
    list_of,
    read_entries,
    read_index,
    read_mode,
    read_range,
    read_samples,
    tar_of,
)
from denoise.errors import UserError
from denoise.files import file_digest
from denoise.images.tensors import Pixels
from denoise.stacks.value_range import ValueRange

FORMAT = 2
FORMAT_WITH_RANGE = 3  # of an index with a range of values, which a version that reads 2 alone would pass over
INDEX = "index.json"
MAX_OPEN_FILES = 64  # of a folder
MAX_CHECKED = 2000  # shards whose files are looked at when a set is opened; of more, each when it is first used
MAX_LISTS = 512  # lists of samples that a process holds in memory: more than a batch's windows need
REMEDY = "make the shards again with `denoise shard NAME` (of your own images: --from FOLDER)"


class DamagedError(UserError):
    """Bytes that differ from what the index says."""


class ShardStore(Protocol):
    """Provides the files of a set of shards."""

    def read(self, file: ShardFile, offset: int, size: int) -> bytes:
        """Return bytes of a file; DamagedError if there is none with its sha256."""
        ...

    def announce(self, files: Sequence[ShardFile]) -> None:
        """Prepare for reading these files soon, the most urgent first."""
        ...

    def drop(self, file: ShardFile) -> bool:
        """Discard a damaged copy of a file; return whether it can be fetched again."""
        ...


class _Descriptor:
    """A file descriptor that is closed when the last reference to it is gone: several threads may read from it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number)


@dataclass(frozen=True)
class ShardFolder:
    """A store whose files are all in one folder."""

    path: Path
    _verified: set[str] = field(default_factory=set, compare=False, repr=False)
    _open_files: dict[str, _Descriptor] = field(default_factory=dict, compare=False, repr=False)

    def read(self, file: ShardFile, offset: int, size: int) -> bytes:
        """Read from a file, whose sha256 is verified the first time; the file stays open."""
        descriptor = self._open_files.get(file.name) or self._open(file)
        return os.pread(descriptor.number, size, offset)

    def announce(self, files: Sequence[ShardFile]) -> None:
        """Do nothing: the files are local."""

    def drop(self, file: ShardFile) -> bool:
        """Return False: there is no other copy."""
        return False

    def check(self, file: ShardFile) -> None:
        """Refuse a file that is missing or has another size than the index says."""
        path = self.path / file.name
        actual = path.stat().st_size if path.is_file() else None
        if actual != file.size:
            problem = "is missing" if actual is None else f"has {actual} bytes instead of {file.size}"
            raise DamagedError(f"shard {path} {problem}; {REMEDY}.")

    def _open(self, file: ShardFile) -> _Descriptor:
        self.check(file)
        path = self.path / file.name
        descriptor = _Descriptor(path)
        if file.name not in self._verified:
            if file_digest(path) != file.sha256:
                raise DamagedError(f"{path} has another sha256 than the index says: its bytes changed; {REMEDY}.")
            self._verified.add(file.name)
        for old in list(self._open_files)[: 1 - MAX_OPEN_FILES]:
            self._open_files.pop(old, None)
        self._open_files[file.name] = descriptor
        return descriptor


@dataclass(frozen=True)
class Shards:
    """A set of shards, read by index."""

    name: str  # for error messages
    entries: Entries = field(compare=False)
    digest: str  # sha256 of index.json: the identity of the data
    store: ShardStore = field(compare=False)
    value_range: ValueRange | None = None  # the values that are 0 and 1 for a network; None: the ends of the type
    _lists: "OrderedDict[int, Sequence[SampleEntry]]" = field(default_factory=OrderedDict, compare=False, repr=False)

    @classmethod
    def open(cls, folder: Path, check: bool = True) -> "Shards":
        """Open a folder of shards and read its index.

        Args:
            folder: the folder.
            check: look at every file at once, of a set that is not large; otherwise at each when it is first used.

        Raises:
            UserError: no index, or one of another format.
            DamagedError: a shard that is missing or of another size.
        """
        path = folder / INDEX
        if not path.is_file():
            raise UserError(f"{folder} holds no shards ({INDEX} is missing); {REMEDY}.")
        with path.open("rb") as file:
            index = file.read(LARGEST_INDEX + 1)
        store = ShardFolder(folder)
        shards = cls.read(str(folder), index, store)
        if check and len(shards.entries) <= MAX_CHECKED:
            for entry in shards.entries:
                store.check(tar_of(entry))
                store.check(list_of(entry))
        return shards

    @classmethod
    def read(cls, name: str, index: bytes, store: ShardStore) -> "Shards":
        """Return the shards of an index whose files ``store`` provides.

        Raises:
            UserError: an index of another format.
            DamagedError: an index that is not valid.
        """
        try:
            version, content = read_index(index)
        except ValueError as error:
            raise DamagedError(f"{name}/{INDEX} is not an index of shards ({error}); {REMEDY}.") from None
        if version not in (FORMAT, FORMAT_WITH_RANGE):
            raise UserError(f"{name}/{INDEX} is an index of format {version}, expected {FORMAT}; {REMEDY}.")
        try:
            entries, limits = read_entries(content), read_range(content)
        except ValueError as error:
            raise DamagedError(
                f"{name}/{INDEX} has entries that describe no shard ({error}): its bytes changed; {REMEDY}."
            ) from None
        value_range = None if limits is None else ValueRange(*limits)
        return cls(name, entries, hashlib.sha256(index).hexdigest(), store, value_range)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each shard."""
        return self.entries.counts

    @cached_property
    def ends(self) -> list[int]:
        """The index after the last sample of each shard."""
        return list(accumulate(self.counts))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.ends[-1]

    def describe(self, index: int) -> SampleEntry:
        """Return the description of a sample: its name, and the size, mode, hashes, checksum and place of each view."""
        number, offset = self._locate(index)
        return self.samples(number)[offset]

    def pixels(self, index: int, view: str = "clean") -> Pixels:
        """Return the decoded image (H, W, C) of a sample, as it is stored.

        Raises:
            DamagedError: its bytes differ from the index.
        """
        sample = self.describe(index)
        stored = sample["views"][view]
        channels, dtype = read_mode(stored["mode"])
        try:
            pixels = decode_stored(self.encoded(index, view), channels, stored["quick"])
        except ValueError as error:
            raise DamagedError(f"{sample['name']} in {self.name} is no plane ({error}); {REMEDY}.") from None
        if (*pixels.shape, pixels.dtype) != (stored["height"], stored["width"], channels, dtype):
            raise DamagedError(
                f"{sample['name']} in {self.name} has {pixels.shape} values of type {pixels.dtype}, which is not what "
                f"its index says; {REMEDY}."
            )
        return pixels

    def encoded(self, index: int, view: str = "clean") -> bytes:
        """Return the bytes of one image of a sample, as in the original file.

        Raises:
            DamagedError: they differ from the index.
        """
        number, offset = self._locate(index)
        sample, entry = self.samples(number)[offset], self.entries[number]
        stored = sample["views"][view]
        while True:
            data = self.store.read(tar_of(entry), stored["offset"], stored["bytes"])
            if zlib.crc32(data) == stored["crc32"]:
                return data
            if not self.store.drop(tar_of(entry)):
                raise DamagedError(
                    f"shard {self.name}/{entry['file']} has changed since it was checked: {sample['name']} has another "
                    f"checksum than the index says; {REMEDY}."
                )

    def samples(self, number: int) -> Sequence[SampleEntry]:
        """Return the descriptions of a shard's samples.

        Raises:
            DamagedError: its list differs from the index.
        """
        samples = self._lists.get(number)
        if samples is None:
            entry = self.entries[number]
            try:
                samples = read_samples(self._read_list(entry), entry)
            except ValueError as error:
                raise DamagedError(
                    f"{self.name}/{list_name(entry['file'])} does not describe the samples of its shard ({error}); "
                    f"{REMEDY}."
                ) from None
            self._lists[number] = samples
            while len(self._lists) > MAX_LISTS:
                self._lists.popitem(last=False)
        return samples

    def _read_list(self, entry: Entry) -> bytes:
        file = list_of(entry)
        while True:
            data = self.store.read(file, 0, file.size)
            if hashlib.sha256(data).hexdigest() == file.sha256:
                return data
            if not self.store.drop(file):
                raise DamagedError(f"{self.name}/{file.name} has another sha256 than the index says; {REMEDY}.")

    def announce(self, number: int) -> None:
        """Announce that a shard will be read from soon."""
        entry = self.entries[number]
        self.store.announce([list_of(entry), tar_of(entry)])

    def fingerprints(self) -> Iterator[tuple[str, str, str]]:
        """Yield (name, grey hash, perceptual hash) of every image in the set."""
        for number in range(len(self.entries)):
            yield from self.fingerprints_of(number)

    def fingerprints_of(self, number: int) -> Iterator[tuple[str, str, str]]:
        """Yield (name, grey hash, perceptual hash) of every image of a shard."""
        for sample in self.samples(number):
            for view in sample["views"].values():
                yield sample["name"], view["grey"], view["look"]

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self.ends, index)
        return number, index - self.ends[number] + self.counts[number]

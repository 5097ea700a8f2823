"""Shards: WebDataset tars of the original picture bytes, an index beside them, and random access by index.

A folder of shards holds

    index.json         the shards in order: file, bytes, sha256, number of samples, sha256 of its list of samples
    000000.tar ...     for each sample the encoded picture(s) as they came, and a JSON member describing them
    000000.json ...    the samples of one shard: names, offsets, picture sizes, pixel hashes

The same pictures give the same bytes on every machine. A shard's sha256 is checked when a process first reads from it.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from denoise.errors import UserError
from denoise.files import file_digest, write_folder, write_json
from denoise.images import pixel_hash, read_picture

FORMAT = 1
INDEX = "index.json"


@dataclass(frozen=True)
class Source:
    """One sample to be sharded: its name and the file of each view ("clean", or "clean" and "noisy" of a real pair)."""

    name: str
    views: Mapping[str, Path]


def write_shards(
    folder: Path,
    sources: Iterable[Source],
    max_bytes: int,
    skip_broken: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write the sources, in their order, as shards with an index, replacing an older folder of that name.

    Args:
        folder: where the shards go, whole or not at all.
        sources: the samples.
        max_bytes: a shard is closed when its pictures exceed this size.
        skip_broken: leave out pictures that do not decode instead of failing.
        advance: called once a sample.

    Returns:
        One sentence for each sample that was left out.

    Raises:
        UserError: a picture does not decode (unless ``skip_broken``), or there is none at all.
    """
    skipped: list[str] = []

    def write(work: Path) -> None:
        writer = _Writer(work, max_bytes)
        for source in sources:
            try:
                writer.add(source)
            except UserError as error:
                if not skip_broken:
                    raise
                skipped.append(str(error))
            advance()
        writer.close()
        if not writer.entries:
            raise UserError(f"no pictures for {folder}; fetch the data set first (denoise fetch NAME).")
        write_json(work / INDEX, {"format": FORMAT, "shards": writer.entries})

    write_folder(folder, write)
    return skipped


class _Writer:
    """Fills one tar after another."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.entries: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.count = self.size = 0
        self.tar: Any = None

    def add(self, source: Source) -> None:
        files, views = {}, {}
        for view, path in sorted(source.views.items()):
            data = path.read_bytes()
            # A lone picture is stored as KEY.jpg, which every WebDataset program expects; views of a pair by name.
            member = _extension(path) if len(source.views) == 1 else f"{view}.{_extension(path)}"
            files[member], views[view] = data, {"member": member, **_describe(data, path)}
        if len({(view["width"], view["height"]) for view in views.values()}) > 1:
            raise UserError(f"the pictures of {source.name} differ in size: they cannot show the same scene.")
        described = {"name": source.name, "views": views}
        if self.tar is None:
            from webdataset import TarWriter

            self.tar = TarWriter(str(self._path(".tar")), mtime=0.0, encoder=False)
        key = f"{self.count:09d}"
        self.tar.write({"__key__": key, **files, "json": json.dumps(described, sort_keys=True).encode()})
        self.samples.append({"key": key, **described})
        self.count += 1
        self.size += sum(map(len, files.values()))
        if self.size >= self.max_bytes:
            self.close()

    def close(self) -> None:
        if self.tar is None:
            return
        self.tar.close()
        tar, samples = self._path(".tar"), self._path(".json")
        _add_offsets(tar, self.samples)
        write_json(samples, self.samples)
        self.entries.append(
            {
                "file": tar.name,
                "bytes": tar.stat().st_size,
                "sha256": file_digest(tar),
                "samples": len(self.samples),
                "samples_sha256": file_digest(samples),
            }
        )
        self.tar, self.samples, self.size = None, [], 0

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{len(self.entries):06d}{suffix}"


def _extension(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _describe(data: bytes, path: Path) -> dict[str, Any]:
    try:
        pixels = read_picture(data).pixels
    except UserError as error:
        raise UserError(f"{path} does not decode: {error}") from None
    height, width, channels = pixels.shape
    mode = ("L" if channels == 1 else "RGB") + (";16" if pixels.dtype == np.uint16 else "")
    return {"width": width, "height": height, "mode": mode, "pixels": pixel_hash(pixels)}


def _add_offsets(path: Path, samples: list[dict[str, Any]]) -> None:
    with tarfile.open(path, "r:") as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    for sample in samples:
        for view in sample["views"].values():
            view["offset"], view["bytes"] = places[f"{sample['key']}.{view['member']}"]


@dataclass(frozen=True)
class Shards:
    """A folder of shards, read by index."""

    folder: Path
    entries: tuple[Mapping[str, Any], ...]
    digest: str  # sha256 of index.json: the identity of the data
    _samples: dict[int, list[dict[str, Any]]] = field(default_factory=dict, compare=False, repr=False)
    _sound: set[int] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Read the index and check that every shard is there in its full size.

        Raises:
            UserError: no index, or a shard that is missing or of another size.
        """
        path = folder / INDEX
        if not path.is_file():
            raise UserError(f"{folder} holds no shards ({INDEX} is missing); make them with `denoise shard NAME`.")
        text = path.read_bytes()
        try:
            entries = tuple(json.loads(text)["shards"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not an index of shards; make it again with `denoise shard NAME`.") from None
        shards = cls(folder, entries, hashlib.sha256(text).hexdigest())
        for number, entry in enumerate(entries):
            tar = folder / entry["file"]
            size = tar.stat().st_size if tar.is_file() else None
            if size != entry["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
                raise shards._broken(number, found)
        return shards

    @cached_property
    def starts(self) -> list[int]:
        """The index of the first sample of each shard, and the number of samples as last entry."""
        starts = [0]
        for entry in self.entries:
            starts.append(starts[-1] + entry["samples"])
        return starts

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.starts[-1]

    def describe(self, index: int) -> Mapping[str, Any]:
        """Return what is known of a sample: name, and for each view size, mode, pixel hash and place."""
        number, place = self._locate(index)
        return self._list(number)[place]

    def pixels(self, index: int, view: str = "clean") -> np.ndarray:
        """Return the decoded picture (H, W, C) of a sample.

        Raises:
            UserError: the shard differs from its index, by name and reason.
        """
        number, _ = self._locate(index)
        self._check(number)
        place = self.describe(index)["views"][view]
        with (self.folder / self.entries[number]["file"]).open("rb") as file:
            data = os.pread(file.fileno(), place["bytes"], place["offset"])
        return read_picture(data).pixels

    def pixel_hashes(self) -> dict[str, str]:
        """Return pixel hash -> name of every picture in the set."""
        return {
            view["pixels"]: sample["name"]
            for number in range(len(self.entries))
            for sample in self._list(number)
            for view in sample["views"].values()
        }

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return number, index - self.starts[number]

    def _list(self, number: int) -> list[dict[str, Any]]:
        if number not in self._samples:
            entry = self.entries[number]
            path = (self.folder / entry["file"]).with_suffix(".json")
            if not path.is_file() or file_digest(path) != entry["samples_sha256"]:
                raise self._broken(number, f"does not go with its list of samples {path.name}")
            self._samples[number] = json.loads(path.read_text(encoding="utf-8"))
        return self._samples[number]

    def _check(self, number: int) -> None:
        if number in self._sound:
            return
        entry = self.entries[number]
        if file_digest(self.folder / entry["file"]) != entry["sha256"]:
            raise self._broken(number, "has another sha256 than the index says: its bytes changed")
        self._sound.add(number)

    def _broken(self, number: int, reason: str) -> UserError:
        path = self.folder / self.entries[number]["file"]
        return UserError(f"shard {path} {reason}; make the shards again with `denoise shard NAME`.")

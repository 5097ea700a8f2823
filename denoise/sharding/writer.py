"""Images into shards: WebDataset tars of the original bytes, the same bytes on every machine.

The samples are cut into shards by the sizes of their files alone, before any is opened. So each shard is a job of its
own: many processes can work side by side, an interrupted run goes on with the shards that are missing, and neither
changes a byte. Nothing of the size of the data set is kept in memory.
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from denoise.data.shards import FORMAT, INDEX, list_name
from denoise.errors import UserError
from denoise.files import file_digest, locked, put_in_place, write_json
from denoise.images.io import decode_quickly, pixel_hash, read_image
from denoise.images.tensors import Pixels
from denoise.sharding.fingerprints import grey_hash, perceptual_hash

QUICK = (".jpg", ".jpeg", ".png")  # formats that the quick decoder may read, if it gives the same pixels
AHEAD = 2  # shards planned ahead, for each process


@dataclass(frozen=True)
class Source:
    """One sample to be sharded: its name and the file of each view ("clean", or "clean" and "noisy" of a real pair)."""

    name: str
    views: Mapping[str, Path]


@dataclass(frozen=True)
class Rules:
    """Which images become samples."""

    min_side: int | None = None  # of both sides, in pixels
    max_side: int | None = None
    only: str | None = None  # grey or colour
    skip_broken: bool = False  # leave out what does not decode instead of failing

    def refuse(self, view: Mapping[str, Any]) -> bool:
        """Say whether an image is left out for its size or its colour."""
        sides = (view["width"], view["height"])
        grey = view["mode"].startswith("L")
        return (
            min(sides) < (self.min_side or 0)
            or max(sides) > (self.max_side or max(sides))
            or (self.only == "grey" and not grey)
            or (self.only == "colour" and grey)
        )


@dataclass(frozen=True)
class Shard:
    """The samples that go into one tar."""

    number: int
    sources: tuple[Source, ...]

    def identity(self, rules: Rules) -> str:
        """Return the digest of all that decides the tar's bytes, as far as file sizes and times show it."""
        files = [
            (source.name, view, str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
            for source in self.sources
            for view, path in sorted(source.views.items())
        ]
        return hashlib.sha256(json.dumps([FORMAT, self.number, asdict(rules), files]).encode()).hexdigest()


@dataclass(frozen=True)
class Written:
    """What became of one planned shard."""

    number: int
    entry: Mapping[str, Any] | None  # its line of the index; None where no sample was left
    broken: tuple[str, ...]  # one sentence for each image that does not decode
    refused: int  # samples that the rules left out
    samples: int  # how many it was planned with
    kept: bool = False  # it was there from an earlier, interrupted run


def write_shards(
    folder: Path,
    sources: Iterable[Source],
    max_bytes: int,
    rules: Rules = Rules(),
    jobs: int = 1,
    done: Callable[[Written], None] = lambda written: None,
    work: Path | None = None,
) -> list[Written]:
    """Write the sources, in their order, as shards with an index, replacing an older folder of that name.

    A run that was interrupted leaves its finished shards in the folder ``work``; the next one checks their bytes and
    goes on from there.

    Args:
        folder: where the shards go, whole or not at all.
        sources: the samples.
        max_bytes: a shard is closed when its images reach this size.
        rules: which images become samples.
        jobs: processes that work side by side.
        done: called after every shard.
        work: where the shards are written before they are put in place; ``.NAME.partial`` beside ``folder`` by default.

    Returns:
        What became of each planned shard, in order.

    Raises:
        UserError: an image does not decode (unless ``rules.skip_broken``), there is none at all, the disk is full, or
            another process is sharding the same set.
    """
    work = work or folder.with_name(f".{folder.name}.partial")
    with locked(work, "sharding into"), put_in_place(work, folder):
        written = []
        for one in _run(work, cut(sources, max_bytes), rules, jobs):
            written.append(one)
            done(one)
        written.sort(key=lambda one: one.number)
        entries = [one.entry for one in written if one.entry is not None]
        if not entries:
            raise UserError(f"no images for {folder}; fetch the data set first (denoise fetch NAME).")
        expected = {INDEX} | {name for entry in entries for name in (entry["file"], list_name(entry["file"]))}
        for path in work.iterdir():
            if path.name not in expected:
                path.unlink()
        write_json(work / INDEX, {"format": FORMAT, "shards": entries})
    return written


def cut(sources: Iterable[Source], max_bytes: int) -> Iterator[Shard]:
    """Yield shards of successive sources, each closed when its files reach ``max_bytes``."""
    number, size, held = 0, 0, list[Source]()
    for source in sources:
        held.append(source)
        size += sum(path.stat().st_size for path in source.views.values())
        if size >= max_bytes:
            yield Shard(number, tuple(held))
            number, size, held = number + 1, 0, []
    if held:
        yield Shard(number, tuple(held))


def _run(work: Path, shards: Iterator[Shard], rules: Rules, jobs: int) -> Iterator[Written]:
    """Yield each shard as it is finished, a few planned ahead of the processes that write them."""
    if jobs == 1:
        yield from (write_shard(work, shard, rules) for shard in shards)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        running: set[Future[Written]] = set()
        try:
            for shard in shards:
                running.add(pool.submit(write_shard, work, shard, rules))
                while len(running) >= AHEAD * jobs:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_shard(work: Path, shard: Shard, rules: Rules) -> Written:
    """Write one tar and the list of its samples, or keep those of an interrupted run if their bytes are sound."""
    name = f"{shard.number:06d}"
    tar, note = work / f"{name}.tar", work / f"{name}.done"
    identity = shard.identity(rules)
    earlier = _finished(work, note, identity)
    if earlier is not None:
        return earlier
    samples: list[dict[str, Any]] = []
    broken, refused = [], 0
    with _tar_writer(tar) as write:
        for place, source in enumerate(shard.sources):
            try:
                files, views = _read(source)
            except UserError as error:
                if not rules.skip_broken:
                    raise
                broken.append(str(error))
                continue
            if any(rules.refuse(view) for view in views.values()):
                refused += 1
                continue
            key, described = f"{name}{place:06d}", {"name": source.name, "views": views}
            write({"__key__": key, **files, "json": json.dumps(described, sort_keys=True).encode()})
            samples.append({"key": key, **described})
    entry = _entry(tar, samples) if samples else None
    written = Written(shard.number, entry, tuple(broken), refused, len(shard.sources))
    write_json(note, {"identity": identity, "written": asdict(written)})
    return written


def _finished(work: Path, note: Path, identity: str) -> Written | None:
    """Return what an interrupted run made of this very shard, if its files are as they were."""
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        if told["identity"] != identity:
            return None
        written = Written(**{**told["written"], "broken": tuple(told["written"]["broken"]), "kept": True})
        entry = written.entry
        sound = entry is None or (
            file_digest(work / entry["file"]) == entry["sha256"]
            and file_digest(work / list_name(entry["file"])) == entry["samples_sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return written if sound else None


def _read(source: Source) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """Return the members of a sample, and what is known of each view."""
    files, views = {}, {}
    for view, path in sorted(source.views.items()):
        data = path.read_bytes()
        # A lone image is stored as KEY.jpg, which every WebDataset program expects; views of a pair by name.
        extension = path.suffix.lower().lstrip(".")
        member = extension if len(source.views) == 1 else f"{view}.{extension}"
        files[member], views[view] = data, {"member": member, **_describe(data, path)}
    if len({(view["width"], view["height"]) for view in views.values()}) > 1:
        raise UserError(f"the images of {source.name} differ in size: they cannot show the same scene.")
    return files, views


def _describe(data: bytes, path: Path) -> dict[str, Any]:
    try:
        pixels: Pixels = read_image(data).pixels
    except UserError as error:
        raise UserError(f"{path} does not decode: {error}") from None
    height, width, channels = pixels.shape
    mode = ("L" if channels == 1 else "RGB") + (";16" if pixels.dtype == np.uint16 else "")
    prints = {"pixels": pixel_hash(pixels), "grey": grey_hash(pixels), "look": perceptual_hash(pixels)}
    quickly = decode_quickly(data, channels) if path.suffix.lower() in QUICK else None
    quick = quickly is not None and np.array_equal(quickly, pixels)
    return {"width": width, "height": height, "mode": mode, "crc32": zlib.crc32(data), "quick": quick, **prints}


@contextmanager
def _tar_writer(path: Path) -> Iterator[Callable[[dict[str, Any]], object]]:
    from webdataset import TarWriter

    tar = TarWriter(str(path), mtime=0.0, encoder=False)
    try:
        yield tar.write
    finally:
        tar.close()


def _entry(tar: Path, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the list of a tar's samples and return the tar's line of the index."""
    with tarfile.open(tar, "r:") as members:
        places = {member.name: (member.offset_data, member.size) for member in members}
    for sample in samples:
        for view in sample["views"].values():
            view["offset"], view["bytes"] = places[f"{sample['key']}.{view['member']}"]
    listed = tar.with_name(list_name(tar.name))
    write_json(listed, samples)
    return {
        "file": tar.name,
        "bytes": tar.stat().st_size,
        "sha256": file_digest(tar),
        "samples": len(samples),
        "samples_bytes": listed.stat().st_size,
        "samples_sha256": file_digest(listed),
    }

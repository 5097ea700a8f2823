"""Writing images into shards: WebDataset tars of the original bytes, the same bytes on every machine."""

import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from denoise.data.index import list_name
from denoise.data.shards import FORMAT, INDEX
from denoise.documents import parse_json
from denoise.errors import UserError
from denoise.files import atomic_folder, explain_write_errors, file_digest, lock_folder, remove, write_json
from denoise.images.io import decode_quickly, image_size, pixel_hash, read_image
from denoise.images.tensors import Pixels
from denoise.sharding.fingerprints import grey_hash, perceptual_hash
from denoise.sharding.plan import ALL_IMAGES, SampleFilter, ShardPlan, Source, plan_shards

QUICK_FORMATS = (".jpg", ".jpeg", ".png")  # that the quick decoder may read, if it gives the same pixels
LARGE = 1 << 28  # bytes of a file
PLANNED_AHEAD = 2  # shards for each process


@dataclass(frozen=True)
class ShardResult:
    """The outcome of one planned shard."""

    number: int
    entry: Mapping[str, Any] | None  # its line of the index; None where no sample was left
    errors: tuple[str, ...]  # one sentence for each image that does not decode
    excluded: int  # samples that the filter left out
    samples: int  # how many it was planned with
    reused: bool = False  # it was there from an earlier, interrupted run


def write_shards(
    folder: Path,
    sources: Iterable[Source],
    max_bytes: int,
    sample_filter: SampleFilter = ALL_IMAGES,
    jobs: int = 1,
    on_shard_written: Callable[[ShardResult], None] = lambda result: None,
    work: Path | None = None,
) -> list[ShardResult]:
    """Write the sources, in their order, as shards with an index, replacing an older folder of that name.

    An interrupted run leaves its finished shards in the folder ``work``; the next run checks their bytes and continues
    from there.

    Args:
        folder: where the shards go, whole or not at all.
        sources: the samples.
        max_bytes: a shard is closed when its images reach this size.
        sample_filter: which images become samples.
        jobs: processes that work in parallel.
        on_shard_written: called after every shard.
        work: where the shards are written until all are complete; ``.NAME.partial`` beside ``folder`` by default.

    Returns:
        The outcome of each planned shard, in order.

    Raises:
        UserError: an image does not decode (unless ``sample_filter.skip_broken``), there is no image at all, the disk
            is full, or another process is sharding the same set.
    """
    work = work or folder.with_name(f".{folder.name}.partial")
    with lock_folder(work, "sharding into"), explain_write_errors(folder), atomic_folder(folder, work, resume=True):
        results = []
        for result in _write_all(work, plan_shards(sources, max_bytes), sample_filter, jobs):
            results.append(result)
            on_shard_written(result)
        results.sort(key=lambda result: result.number)
        entries = [result.entry for result in results if result.entry is not None]
        if not entries:
            raise UserError(f"there are no images for {folder}: its source holds none, or all were left out.")
        expected = {INDEX} | {name for entry in entries for name in (entry["file"], list_name(entry["file"]))}
        for path in work.iterdir():
            if path.name not in expected:
                remove(path, work)
        write_json(work / INDEX, {"format": FORMAT, "shards": entries})
    return results


def _write_all(work: Path, plans: Iterator[ShardPlan], sample_filter: SampleFilter, jobs: int) -> Iterator[ShardResult]:
    """Yield each shard as it is finished, a few planned ahead of the processes that write them."""
    if jobs == 1:
        yield from (write_shard(work, plan, sample_filter) for plan in plans)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        running: set[Future[ShardResult]] = set()
        try:
            for plan in plans:
                running.add(pool.submit(write_shard, work, plan, sample_filter))
                while len(running) >= PLANNED_AHEAD * jobs:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_shard(work: Path, plan: ShardPlan, sample_filter: SampleFilter) -> ShardResult:
    """Write one tar and the list of its samples, or reuse those of an interrupted run if their bytes are intact."""
    name = f"{plan.number:06d}"
    tar, note = work / f"{name}.tar", work / f"{name}.done"
    identity = plan.identity(sample_filter)
    previous = _read_note(work, note, identity)
    if previous is not None:
        return previous
    samples: list[dict[str, Any]] = []
    errors, excluded = [], 0
    with _tar_writer(tar) as write:
        for position, source in enumerate(plan.sources):
            try:
                files, views = _read_sample(source)
            except UserError as error:
                if not sample_filter.skip_broken:
                    raise
                errors.append(str(error))
                continue
            if any(sample_filter.excludes(view) for view in views.values()):
                excluded += 1
                continue
            key, described = f"{name}{position:06d}", {"name": source.name, "views": views}
            write({"__key__": key, **files, "json": json.dumps(described, sort_keys=True).encode()})
            samples.append({"key": key, **described})
    entry = _index_entry(tar, samples) if samples else None
    result = ShardResult(plan.number, entry, tuple(errors), excluded, len(plan.sources))
    _write_note(note, result, identity)
    return result


def _write_note(note: Path, result: ShardResult, identity: str) -> None:
    """Write what a later run needs to reuse a finished shard."""
    written = {
        "number": result.number,
        "entry": result.entry,
        "broken": result.errors,
        "refused": result.excluded,
        "samples": result.samples,
    }
    write_json(note, {"identity": identity, "written": written})


def _read_note(work: Path, note: Path, identity: str) -> ShardResult | None:
    """Return the outcome of this very shard in an interrupted run, None if there is none or its files have changed."""
    try:
        content = parse_json(note.read_bytes())
        if content["identity"] != identity:
            return None
        written = content["written"]
        entry = written["entry"]
        result = ShardResult(
            written["number"], entry, tuple(written["broken"]), written["refused"], written["samples"], reused=True
        )
        intact = entry is None or (
            file_digest(work / entry["file"]) == entry["sha256"]
            and file_digest(work / list_name(entry["file"])) == entry["samples_sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if intact else None


def _read_sample(source: Source) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """Return the members of a sample in its tar, and the description of each view."""
    files, views = {}, {}
    for view, path in sorted(source.views.items()):
        try:
            if path.stat().st_size > LARGE:
                image_size(path)  # refuses what is no image before its bytes are in memory
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
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
        raise UserError(str(error).replace("image", str(path), 1)) from None
    height, width, channels = pixels.shape
    mode = ("L" if channels == 1 else "RGB") + (";16" if pixels.dtype == np.uint16 else "")
    hashes = {"pixels": pixel_hash(pixels), "grey": grey_hash(pixels), "look": perceptual_hash(pixels)}
    quickly = decode_quickly(data, channels) if path.suffix.lower() in QUICK_FORMATS else None
    quick = quickly is not None and np.array_equal(quickly, pixels)
    return {"width": width, "height": height, "mode": mode, "crc32": zlib.crc32(data), "quick": quick, **hashes}


@contextmanager
def _tar_writer(path: Path) -> Iterator[Callable[[dict[str, Any]], object]]:
    from webdataset import TarWriter

    tar = TarWriter(str(path), mtime=0.0, encoder=False)
    try:
        yield tar.write
    finally:
        tar.close()


def _index_entry(tar: Path, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the list of a tar's samples and return the tar's line of the index."""
    with tarfile.open(tar, "r:") as members:
        locations = {member.name: (member.offset_data, member.size) for member in members}
    for sample in samples:
        for view in sample["views"].values():
            view["offset"], view["bytes"] = locations[f"{sample['key']}.{view['member']}"]
    sample_list = tar.with_name(list_name(tar.name))
    write_json(sample_list, samples)
    return {
        "file": tar.name,
        "bytes": tar.stat().st_size,
        "sha256": file_digest(tar),
        "samples": len(samples),
        "samples_bytes": sample_list.stat().st_size,
        "samples_sha256": file_digest(sample_list),
    }

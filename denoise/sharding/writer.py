"""Writing images into shards: WebDataset tars of the original bytes, the same bytes on every machine."""

import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from denoise.data.index import list_name, mode_of
from denoise.data.shards import FORMAT, FORMAT_WITH_RANGE, INDEX
from denoise.documents import parse_json
from denoise.errors import UserError
from denoise.files import atomic_folder, explain_write_errors, file_digest, lock_folder, remove, write_json
from denoise.images.io import decode_quickly, image_size, pixel_hash, read_image
from denoise.images.tensors import Pixels
from denoise.sharding.fingerprints import grey_hash, perceptual_hash
from denoise.sharding.plan import ALL_IMAGES, SampleFilter, ShardPlan, Source, plan_shards
from denoise.sharding.planes import PlaneReader, eight_bits
from denoise.stacks.encoded import encode_plane
from denoise.stacks.options import AUTO, BY_PERCENTILES, BY_TYPE, choose_range
from denoise.stacks.survey import Survey, survey
from denoise.stacks.value_range import ValueRange

QUICK_FORMATS = (".jpg", ".jpeg", ".png")  # that the quick decoder may read, if it gives the same pixels
LARGE = 1 << 28  # bytes of a file
PLANNED_AHEAD = 2  # shards for each process


NOTHING = Survey()


@dataclass(frozen=True)
class ShardResult:
    """The outcome of one planned shard."""

    number: int
    entry: Mapping[str, Any] | None  # its line of the index; None where no sample was left
    errors: tuple[str, ...]  # one sentence for each image that does not decode
    excluded: int  # samples that the filter left out
    samples: int  # how many it was planned with
    values: Survey = NOTHING  # of its planes, or of all its images where their values are measured
    types: tuple[str, ...] = ()  # of the values of its images
    reused: bool = False  # it was there from an earlier, interrupted run


def write_shards(
    folder: Path,
    sources: Iterable[Source],
    max_bytes: int,
    sample_filter: SampleFilter = ALL_IMAGES,
    jobs: int = 1,
    on_shard_written: Callable[[ShardResult], None] = lambda result: None,
    work: Path | None = None,
    value_range: str = AUTO,
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
        value_range: which values become 0 and 1 for a network, as in ``StackOptions``; ``auto`` asks for no range where
            no sample is the plane of a stack.

    Returns:
        The outcome of each planned shard, in order.

    Raises:
        UserError: an image does not decode (unless ``sample_filter.skip_broken``), there is no image at all, the disk
            is full, another process is sharding the same set, or no range fits its values.
    """
    work = work or folder.with_name(f".{folder.name}.partial")
    with lock_folder(work, "sharding into"), explain_write_errors(folder), atomic_folder(folder, work, resume=True):
        results = []
        plans = plan_shards(sources, max_bytes, value_range == BY_PERCENTILES)
        for result in _write_all(work, plans, sample_filter, jobs):
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
        found = _range_of(results, value_range, str(folder))
        ranged = {} if found is None else {"range": {"low": found.low, "high": found.high}}
        write_json(work / INDEX, {"format": FORMAT_WITH_RANGE if ranged else FORMAT, "shards": entries, **ranged})
    return results


def _range_of(results: Sequence[ShardResult], wanted: str, name: str) -> ValueRange | None:
    """Return the range of a set's values, None where all are images in the range of their types."""
    values = sum((result.values for result in results), NOTHING)
    if not values.planes and wanted == AUTO:
        return None
    types = sorted({dtype for result in results for dtype in result.types})
    if len(types) > 1 and wanted in (AUTO, BY_TYPE, BY_PERCENTILES):
        raise UserError(
            f"the images of {name} hold values of the types {' and '.join(types)}, which no one range fits; make a set "
            "of each, or give --range LOW,HIGH."
        )
    return choose_range(wanted, types[0], values, name)


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
    values, types = NOTHING, set[str]()
    with _tar_writer(tar) as write, PlaneReader() as planes:
        for position, source in enumerate(plan.sources):
            try:
                files, views, pixels = _read_sample(source, planes)
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
            types |= {image.dtype.name for image in pixels}
            values += sum(map(survey, pixels if plan.measured or source.plane else ()), NOTHING)
    entry = _index_entry(tar, samples) if samples else None
    result = ShardResult(plan.number, entry, tuple(errors), excluded, len(plan.sources), values, tuple(sorted(types)))
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
        "values": astuple(result.values) if result.values.planes else None,
        "types": result.types,
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
        values = Survey(*written["values"]) if written["values"] else NOTHING
        counts = (tuple(written["broken"]), written["refused"], written["samples"])
        result = ShardResult(written["number"], entry, *counts, values, tuple(written["types"]), reused=True)
        intact = entry is None or (
            file_digest(work / entry["file"]) == entry["sha256"]
            and file_digest(work / list_name(entry["file"])) == entry["samples_sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if intact else None


def _read_sample(
    source: Source, planes: PlaneReader
) -> tuple[dict[str, bytes], dict[str, dict[str, Any]], list[Pixels]]:
    """Return the members of a sample in its tar, the description of each view, and their pixels."""
    files, views, decoded = {}, {}, []
    for view, path in sorted(source.views.items()):
        if source.plane is None:
            data, pixels = _read_image(path)
        else:
            pixels = planes.read(path, source.plane)
            data = encode_plane(pixels)
        # A lone image is stored as KEY.jpg, which every WebDataset program expects; views of a pair by name.
        extension = "npy" if source.plane else path.suffix.lower().lstrip(".")
        member = extension if len(source.views) == 1 else f"{view}.{extension}"
        quick = path.suffix.lower() in QUICK_FORMATS and _is_quick(data, pixels)
        files[member], views[view] = data, {"member": member, "quick": quick, **_describe(data, pixels, source)}
        decoded.append(pixels)
    if len({(view["width"], view["height"]) for view in views.values()}) > 1:
        raise UserError(f"the images of {source.name} differ in size: they cannot show the same scene.")
    return files, views, decoded


def _read_image(path: Path) -> tuple[bytes, Pixels]:
    try:
        if path.stat().st_size > LARGE:
            image_size(path)  # refuses what is no image before its bytes are in memory
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return data, read_image(data).pixels
    except UserError as error:
        raise UserError(str(error).replace("image", str(path), 1)) from None


def _is_quick(data: bytes, pixels: Pixels) -> bool:
    """Return whether the quick decoder gives the same pixels."""
    quickly = decode_quickly(data, pixels.shape[2])
    return quickly is not None and np.array_equal(quickly, pixels)


def _describe(data: bytes, pixels: Pixels, source: Source) -> dict[str, Any]:
    height, width, channels = pixels.shape
    look = perceptual_hash(eight_bits(pixels) if source.plane else pixels)
    hashes = {"pixels": pixel_hash(pixels), "grey": grey_hash(pixels), "look": look}
    mode = mode_of(channels, pixels.dtype.name)
    return {"width": width, "height": height, "mode": mode, "crc32": zlib.crc32(data), **hashes}


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

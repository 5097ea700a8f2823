"""Shards between this machine and another place: push, pull and verify, file by file against the index."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoise.config import Config
from denoise.data.shards import DamagedError
from denoise.errors import UserError
from denoise.files import file_digest, put_in_place
from pipelines.console import progress
from pipelines.datasets.layout import shard_folder, work_folder
from pipelines.storage.base import (
    NotFoundError,
    Remote,
    WritableRemote,
    fetch_bytes,
    remote,
    with_retries,
    writable_remote,
)

CONNECTIONS = 8


@dataclass(frozen=True)
class File:
    """One file of a set of shards, as its index describes it."""

    name: str
    size: int
    sha256: str


def push(config: Config, name: str, split: str) -> str:
    """Copy a set's shards to ``data.url``, the index last, so that nobody ever sees a part of them; return the address.

    What is there already is not sent again.

    Raises:
        UserError: no ``data.url``, shards that are damaged or missing here, or a place that cannot be written to.
    """
    from denoise.data.shards import INDEX

    place, folder, prefix = (
        writable_remote(_url(config)),
        shard_folder(Path(config.data.root), split, name),
        f"{split}/{name}",
    )
    problems = list(check_folder(folder))
    if problems:
        raise UserError(f"the shards of {name} are not sound ({problems[0]}); make them again before they are pushed.")
    there = _files_there(place, prefix)
    files = [file for file in _files(_index(folder)) if file not in there]
    with progress(f"push {name} {split}", sum(file.size for file in files), "bytes") as advance:
        for file in _side_by_side(files, lambda file: _send(place, folder / file.name, f"{prefix}/{file.name}")):
            advance(file.size)
    _send(place, folder / INDEX, f"{prefix}/{INDEX}")
    return f"{place.address}/{prefix}"


def pull(config: Config, name: str, split: str) -> Path:
    """Copy a set's shards from ``data.url`` to the data folder and return their folder.

    What an interrupted pull brought is kept and not brought again.

    Raises:
        UserError: no ``data.url``, no such set there, or a file that is not the one of the index.
    """
    from denoise.data.shards import INDEX

    place, prefix, root = remote(_url(config)), f"{split}/{name}", Path(config.data.root)
    index = _index_there(place, prefix)
    target, work = shard_folder(root, split, name), work_folder(root, split, name).with_name(f"{name}.pull")
    files = _files(json.loads(index))
    with put_in_place(work, target), progress(f"pull {name} {split}", sum(f.size for f in files), "bytes") as advance:
        for file in _side_by_side(files, lambda file: _receive(place, prefix, file, target, work)):
            advance(file.size)
        (work / INDEX).write_bytes(index)
        for path in set(work.iterdir()) - {work / INDEX, *(work / file.name for file in files)}:
            path.unlink()
    return target


def verify(config: Config, name: str, split: str) -> list[str]:
    """Return what is wrong with a set's shards, one sentence each: those at ``data.url`` if given, else those here.

    Every byte is read.
    """
    if config.data.url is None:
        return list(check_folder(shard_folder(Path(config.data.root), split, name)))
    place, prefix = remote(_url(config)), f"{split}/{name}"
    files = _files(json.loads(_index_there(place, prefix)))
    problems: list[str] = []
    with progress(f"verify {name} {split}", sum(file.size for file in files), "bytes") as advance:

        def check(file: File) -> None:
            try:
                received = fetch_digest(place, f"{prefix}/{file.name}")
            except NotFoundError:
                problems.append(f"{place.address}/{prefix}/{file.name} is missing.")
                return
            if received != (file.size, file.sha256):
                problems.append(f"{place.address}/{prefix}/{file.name} is not the file of the index.")

        for file in _side_by_side(files, check):
            advance(file.size)
    return sorted(problems)


def check_folder(folder: Path) -> Iterator[str]:
    """Yield what is wrong with a folder of shards."""
    from denoise.data.shards import INDEX

    try:
        files = _files(_index(folder))
    except UserError as error:
        yield str(error)
        return
    with progress(f"verify {folder}", sum(file.size for file in files), "bytes") as advance:
        for file in files:
            path = folder / file.name
            if not path.is_file():
                yield f"{path} is missing."
            elif path.stat().st_size != file.size:
                yield f"{path} has {path.stat().st_size} bytes instead of {file.size}."
            elif file_digest(path) != file.sha256:
                yield f"{path} has another sha256 than the index says: its bytes changed."
            advance(file.size)
    for path in sorted(set(folder.iterdir()) - {folder / INDEX, *(folder / file.name for file in files)}):
        yield f"{path} is not in the index."


def fetch_digest(place: Remote, path: str) -> tuple[int, str]:
    """Return size and sha256 of a file elsewhere without keeping it."""

    def attempt() -> tuple[int, str]:
        sink = _Hashing()
        place.receive(path, sink, 0)  # type: ignore[arg-type]
        return sink.size, sink.digest.hexdigest()

    return with_retries(f"{place.address}/{path}", attempt)


class _Hashing(io.RawIOBase):
    """A file that keeps only the hash of what is written to it."""

    def __init__(self) -> None:
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return len(data)


def _url(config: Config) -> str:
    if config.data.url is None:
        raise UserError("data.url is not set; say where the shards go, for example -S data.url=s3://BUCKET/PREFIX.")
    return config.data.url


def _index(folder: Path) -> Mapping[str, Any]:
    from denoise.data.shards import INDEX, ShardFolder, Shards

    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{folder} holds no shards ({INDEX} is missing); make them with `denoise shard NAME`.")
    shards = Shards.read(str(folder), path.read_bytes(), ShardFolder(folder))
    return {"shards": shards.entries}


def _index_there(place: Remote, prefix: str) -> bytes:
    from denoise.data.shards import INDEX, ShardFolder, Shards

    try:
        index = fetch_bytes(place, f"{prefix}/{INDEX}")
    except NotFoundError:
        raise NotFoundError(
            f"there is no {prefix} at {place.address}; put it there with `denoise data push`."
        ) from None
    Shards.read(f"{place.address}/{prefix}", index, ShardFolder(Path(prefix)))  # is it one?
    return index


def _files_there(place: Remote, prefix: str) -> set[File]:
    """Return the files of the set that is there now; none where there is no set, or a damaged one."""
    try:
        return set(_files(json.loads(_index_there(place, prefix))))
    except (NotFoundError, DamagedError):
        return set()


def _files(index: Mapping[str, Any]) -> list[File]:
    from denoise.data.shards import list_name

    found = []
    for entry in index["shards"]:
        found.append(File(entry["file"], entry["bytes"], entry["sha256"]))
        found.append(File(list_name(entry["file"]), entry["samples_bytes"], entry["samples_sha256"]))
    return found


def _send(place: WritableRemote, source: Path, path: str) -> None:
    with_retries(f"{place.address}/{path}", lambda: place.send(source, path))


def _receive(place: Remote, prefix: str, file: File, target: Path, work: Path) -> None:
    """Bring one file, unless an earlier pull, or the version that is here, has the same one."""
    path = work / file.name
    if path.is_file() and file_digest(path) == file.sha256:
        return
    here = target / file.name
    if here.is_file() and here.stat().st_size == file.size and file_digest(here) == file.sha256:
        os.link(here, path)
        return
    part = path.with_suffix(path.suffix + ".part")

    def attempt() -> None:
        with part.open("wb") as sink:
            place.receive(f"{prefix}/{file.name}", sink, 0)

    with_retries(f"{place.address}/{prefix}/{file.name}", attempt)
    if file_digest(part) != file.sha256:
        raise UserError(f"{place.address}/{prefix}/{file.name} is not the file of the index; push the set again.")
    part.replace(path)


def _side_by_side(files: list[File], work: Any) -> Iterator[File]:
    """Do something with every file, several at once; the first failure ends it."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        waiting = {pool.submit(work, file): file for file in files}
        try:
            for done in as_completed(waiting):
                done.result()
                yield waiting[done]
        finally:
            pool.shutdown(cancel_futures=True)

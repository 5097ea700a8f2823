"""Push, pull and verify shards: file by file against the index, between this machine and a remote."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from denoise.config import Config
from denoise.data.index import LARGEST_INDEX, Entries, ShardFile, list_of, tar_of
from denoise.data.shards import INDEX, DamagedError, ShardFolder, Shards
from denoise.errors import UserError
from denoise.files import atomic_folder, explain_write_errors, file_digest, has_digest, remove
from pipelines.console import progress
from pipelines.datasets.hints import how_to_make
from pipelines.datasets.layout import set_path, shard_folder, work_folder
from pipelines.storage.base import LimitedFile, NotFoundError, Remote, TooLargeError, WritableRemote, with_retries
from pipelines.storage.remote import fetch_bytes, remote, writable_remote

CONNECTIONS = 8


def push(config: Config, name: str, split: str) -> str:
    """Copy a set's shards to ``data.url``, the index last, so that nobody ever sees a part of them; return the address.

    Files that exist there are not sent again.

    Raises:
        UserError: no ``data.url``, shards that are damaged or missing here, or a remote that cannot be written to.
    """
    target, prefix = writable_remote(_url(config)), set_path(split, name)
    folder = shard_folder(Path(config.data.root), split, name)
    problems = list(check_folder(folder))
    if problems:
        raise UserError(f"the shards of {name} are damaged ({problems[0]}); make them again before you push them.")
    existing = _remote_files(target, prefix)
    files = [file for file in _files_of(_local_index(folder)) if file not in existing]
    with progress(f"push {name} {split}", sum(file.size for file in files), "bytes") as advance:
        for file in _in_parallel(files, lambda file: _send(target, folder / file.name, f"{prefix}/{file.name}")):
            advance(file.size)
    _send(target, folder / INDEX, f"{prefix}/{INDEX}")
    return f"{target.address}/{prefix}"


def pull(config: Config, name: str, split: str) -> Path:
    """Copy a set's shards from ``data.url`` to the data folder and return their folder.

    Files of an interrupted pull are not downloaded again.

    Raises:
        UserError: no ``data.url``, no such set there, or a file with another sha256 than the index says.
    """
    source, prefix, root = remote(_url(config)), set_path(split, name), Path(config.data.root)
    index, entries = _remote_index(source, prefix)
    target, work = shard_folder(root, split, name), work_folder(root, split, name).with_name(f"{name}.pull")
    files = _files_of(entries)
    with (
        explain_write_errors(target),
        atomic_folder(target, work, resume=True),
        progress(f"pull {name} {split}", sum(file.size for file in files), "bytes") as advance,
    ):
        for file in _in_parallel(files, lambda file: _receive(source, prefix, file, target, work)):
            advance(file.size)
        (work / INDEX).write_bytes(index)
        for path in set(work.iterdir()) - {work / INDEX, *(work / file.name for file in files)}:
            remove(path, work)
    return target


def verify(config: Config, name: str, split: str) -> list[str]:
    """Return the problems of a set's shards, one sentence each: of those at ``data.url`` if set, else of those here.

    Every byte is read.
    """
    if config.data.url is None:
        return list(check_folder(shard_folder(Path(config.data.root), split, name)))
    source, prefix = remote(_url(config)), set_path(split, name)
    files = _files_of(_remote_index(source, prefix)[1])
    problems: list[str] = []
    with progress(f"verify {name} {split}", sum(file.size for file in files), "bytes") as advance:

        def check(file: ShardFile) -> None:
            address = f"{source.address}/{prefix}/{file.name}"
            try:
                if fetch_digest(source, f"{prefix}/{file.name}", file.size) != (file.size, file.sha256):
                    problems.append(f"{address} is not the file of the index.")
            except NotFoundError:
                problems.append(f"{address} is missing.")
            except TooLargeError:
                problems.append(f"{address} has more than the {file.size} bytes of the index.")

        for file in _in_parallel(files, check):
            advance(file.size)
    return sorted(problems)


def check_folder(folder: Path) -> Iterator[str]:
    """Yield the problems of a folder of shards, one sentence each."""
    try:
        files = _files_of(_local_index(folder))
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


def fetch_digest(source: Remote, path: str, limit: int) -> tuple[int, str]:
    """Return size and sha256 of a remote file without storing it; TooLargeError if it has more than ``limit`` bytes."""
    address = f"{source.address}/{path}"

    def attempt() -> tuple[int, str]:
        sink = _DigestSink()
        source.receive(path, LimitedFile(sink, limit, address), 0)
        return sink.size, sink.digest.hexdigest()

    return with_retries(address, attempt)


class _DigestSink(io.RawIOBase):
    """A file that hashes what is written to it and stores nothing."""

    def __init__(self) -> None:
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


def _url(config: Config) -> str:
    if config.data.url is None:
        raise UserError("data.url is not set; say where the shards go, for example -S data.url=s3://BUCKET/PREFIX.")
    return config.data.url


def _local_index(folder: Path) -> Entries:
    path = folder / INDEX
    if not path.is_file():
        hint = how_to_make(folder.name, folder.parent.name)
        raise UserError(f"{folder} holds no shards ({INDEX} is missing); {hint}.")
    return Shards.read(str(folder), path.read_bytes(), ShardFolder(folder)).entries


def _remote_index(source: Remote, prefix: str) -> tuple[bytes, Entries]:
    try:
        index = fetch_bytes(source, f"{prefix}/{INDEX}", LARGEST_INDEX)
    except NotFoundError:
        raise NotFoundError(
            f"there is no {prefix} at {source.address}; put it there with `denoise data push`."
        ) from None
    return index, Shards.read(f"{source.address}/{prefix}", index, ShardFolder(Path(prefix))).entries


def _remote_files(source: Remote, prefix: str) -> set[ShardFile]:
    """Return the files of the set at a remote; none where there is no set, or a damaged one."""
    try:
        return set(_files_of(_remote_index(source, prefix)[1]))
    except (NotFoundError, DamagedError):
        return set()


def _files_of(entries: Entries) -> list[ShardFile]:
    return [file for entry in entries for file in (tar_of(entry), list_of(entry))]


def _send(target: WritableRemote, source: Path, path: str) -> None:
    with_retries(f"{target.address}/{path}", lambda: target.send(source, path))


def _receive(source: Remote, prefix: str, file: ShardFile, target: Path, work: Path) -> None:
    """Download one file, unless an earlier pull, or the older version in ``target``, has the same one."""
    path = work / file.name
    if has_digest(path, file.sha256):
        return
    older = target / file.name
    if older.is_file() and older.stat().st_size == file.size and file_digest(older) == file.sha256:
        os.link(older, path)
        return
    part, address = path.with_suffix(path.suffix + ".part"), f"{source.address}/{prefix}/{file.name}"

    def attempt() -> None:
        with part.open("wb") as sink:
            source.receive(f"{prefix}/{file.name}", LimitedFile(sink, file.size, address), 0)

    with_retries(address, attempt)
    if file_digest(part) != file.sha256:
        raise UserError(f"{address} is not the file of the index; push the set again.")
    part.replace(path)


def _in_parallel(files: list[ShardFile], work: Callable[[ShardFile], None]) -> Iterator[ShardFile]:
    """Call ``work`` on every file, several at once, and yield each that is done; the first error ends it."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        futures = {pool.submit(work, file): file for file in files}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            pool.shutdown(cancel_futures=True)

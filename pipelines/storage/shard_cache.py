"""Shards from elsewhere on this machine's disk: a bounded cache that all its processes share.

A file is called by its sha256, so two data sets never meet in one name, and what is there was checked when it came.
Every process may be killed at any moment: files appear by renaming, and locks go with their process.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from denoise.data.shards import DamagedError
from denoise.errors import UserError
from pipelines.console import say
from pipelines.storage.base import NotFoundError, Remote, TransientError, with_retries

CONNECTIONS = 4  # files on their way at once, in each process
ATTEMPTS = 3  # of a file that arrives whole but is another one
FRESH = 1.0  # seconds after which the time of last use is noted again
ROOM = "room.lock"  # held by who counts the bytes in the cache or changes what is there
WAIT = 0.05  # seconds between two looks whether there is room


class ShardCache:
    """The files of one set of shards, brought from a ``Remote`` when they are needed; a ``Store``.

    Args:
        place: where they come from.
        prefix: the folder of the set there.
        folder: the cache of this machine.
        budget: bytes that the cache may hold.
        sizes: bytes of each file, by name.
    """

    def __init__(self, place: Remote, prefix: str, folder: Path, budget: int, sizes: dict[str, int]) -> None:
        self.place, self.prefix, self.folder, self.budget, self.sizes = place, prefix, folder, budget, sizes
        self.threads: ThreadPoolExecutor | None = None
        self.coming: dict[str, Future[None]] = {}
        self.used: dict[str, float] = {}
        self.brought_ahead: set[str] = set()  # and not opened yet
        self.warned = False
        self.folder.mkdir(parents=True, exist_ok=True)

    def __getstate__(self) -> dict[str, object]:
        """Leave threads and what they do behind when the depot goes to another process."""
        return {**self.__dict__, "threads": None, "coming": {}, "used": {}, "brought_ahead": set()}

    @contextmanager
    def open(self, name: str, sha256: str) -> Iterator[IO[bytes]]:
        """Hold a file open, bringing it if it is not here."""
        path = self.folder / sha256
        while True:
            try:
                file = path.open("rb")
                break
            except FileNotFoundError:
                self._warn_of_a_small_cache(sha256)
                self._bring(name, sha256)
        self.brought_ahead.discard(sha256)
        with file:  # even if another process removes the file now, what is open stays readable
            now = time.monotonic()
            if now - self.used.get(sha256, -FRESH) >= FRESH:
                self.used[sha256] = now
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)
            yield file

    def read(self, name: str, sha256: str, offset: int, size: int) -> bytes:
        """Read from a file, which is brought if it is not here."""
        with self.open(name, sha256) as file:
            return os.pread(file.fileno(), size, offset)

    def expect(self, files: Sequence[tuple[str, str]]) -> None:
        """Bring files in the background, in this order."""
        if self.threads is None:
            self.threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="depot")
        self.coming = {sha256: future for sha256, future in self.coming.items() if not future.done()}
        for name, sha256 in files:
            if sha256 not in self.coming and not (self.folder / sha256).exists():
                self.coming[sha256] = self.threads.submit(self._try_to_bring, name, sha256)

    def drop(self, name: str, sha256: str) -> bool:
        """Remove a copy that has gone bad on this disk; another one can be had."""
        (self.folder / sha256).unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Stop bringing files."""
        if self.threads is not None:
            self.threads.shutdown(wait=False, cancel_futures=True)

    def _try_to_bring(self, name: str, sha256: str) -> None:
        """Bring a file ahead of its use; what is wrong with it will be told when it is used."""
        with contextlib.suppress(UserError, OSError):
            self._bring(name, sha256)
            self.brought_ahead.add(sha256)

    def _warn_of_a_small_cache(self, sha256: str) -> None:
        """Say once that a file was brought ahead of its use and had to go before it."""
        if sha256 in self.brought_ahead and not self.warned:
            self.warned = True
            say(
                f"the cache {self.folder} is too small: shards are removed before they are used, and brought again; "
                f"raise data.disk_gb (now {self.budget / 1e9:g}), or lower data.streams or data.window (docs/data.md, "
                "Order)."
            )

    def _bring(self, name: str, sha256: str) -> None:
        """Bring a file; of several processes and threads that want it one does, the others wait."""
        size, address = self.sizes[name], f"{self.place.address}/{self.prefix}/{name}"
        path, part = self.folder / sha256, self.folder / f"{sha256}.{size}.part"
        with _locked(_lock_of(path)):
            if path.exists():
                return
            for _ in range(ATTEMPTS):
                self._make_room(part, size, address)
                with_retries(address, lambda: self._receive(name, part, size))
                with part.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                        with _locked(self.folder / ROOM):  # one who counts finds it under one name or the other
                            part.replace(path)
                        return
                part.unlink()
            raise DamagedError(
                f"{address} has another sha256 than the index says, {ATTEMPTS} times; push the set again."
            )

    def _receive(self, name: str, part: Path, size: int) -> None:
        """Bring what is missing of a file; BrokenError if it is still not whole, DamagedError if it does not exist."""
        with part.open("ab") as file:
            if file.tell() >= size:
                file.truncate(0)
            try:
                self.place.receive(f"{self.prefix}/{name}", file, file.tell())
            except NotFoundError as error:
                raise DamagedError(f"shard {str(error).rstrip('.')}; push the set again.") from None
            if file.tell() < size:
                raise TransientError(f"the connection broke after {file.tell()} of {size} bytes")

    def _make_room(self, part: Path, size: int, address: str) -> None:
        """Reserve the room of a file, removing what was not used for the longest time; wait while all of it is coming.

        Only what is coming holds up others, and that never waits itself: it has its room.
        """
        if size > self.budget:
            raise UserError(
                f"{address} has {size} bytes, more than the {self.budget} that data.disk_gb allows; raise "
                "data.disk_gb, or make smaller shards (data.shard_mb)."
            )
        while not self._reserve(part, size):
            time.sleep(WAIT)

    def _reserve(self, part: Path, size: int) -> bool:
        """Put ``part``, whose name holds its size, in the cache if there is room beside what is coming."""
        with _locked(self.folder / ROOM):
            held, removable = size, list[tuple[float, int, Path]]()
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status, coming = path.stat(), path.suffix == ".part"
                    if path == part or path.suffix == ".lock":
                        continue
                    bytes_ = int(path.suffixes[0][1:]) if coming else status.st_size
                    held += bytes_
                    if not coming or _abandoned(path):
                        removable.append((status.st_mtime, bytes_, path))
            if held - sum(bytes_ for _, bytes_, _ in removable) > self.budget:
                part.unlink(missing_ok=True)  # what an earlier attempt left would hold up the others in turn
                return False
            for _, bytes_, path in sorted(removable):
                if held <= self.budget:
                    break
                path.unlink(missing_ok=True)
                held -= bytes_
            part.touch()
            return True


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock file, between processes and between threads; a killed process lets go of it."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock_of(path: Path) -> Path:
    """Return the lock of a file that comes: one of 256, since each that is made stays."""
    return path.with_name(f"{path.name[:2]}.lock")


def _abandoned(part: Path) -> bool:
    """Say whether nobody is bringing this file any more."""
    handle = os.open(_lock_of(part), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True

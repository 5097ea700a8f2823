"""ShardCache: the shards of a remote on this machine's disk, within a limit, shared by all processes.

A file is named by its sha256, so two data sets never meet in one name, and what is there was checked when it arrived.
Every process may be killed at any moment: files appear by renaming, and locks go with their process.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from denoise.data.index import ShardFile
from denoise.data.shards import DamagedError
from denoise.errors import UserError
from denoise.files import exclusive_lock, file_digest, is_sha256, remove
from pipelines.console import say
from pipelines.storage.base import LimitedFile, NotFoundError, Remote, TooLargeError, TransientError, with_retries

CONNECTIONS = 4  # downloads at once, in each process
ATTEMPTS = 3  # for a file that arrives whole, but with another sha256
TOUCH_INTERVAL = 1.0  # seconds after which a file's time of last use is written again
ROOM_LOCK = "room.lock"  # held while the bytes in the cache are counted or its files change
POLL_INTERVAL = 0.05  # seconds between two checks for room
CACHED = re.compile(r"[0-9a-f]{64}(?:\.([0-9]+)\.part)?")  # names of files here; no others are counted or removed


class ShardCache:
    """The files of one set of shards, downloaded from a remote when they are needed; a ``ShardStore``.

    Args:
        source: the remote.
        prefix: the folder of the set there.
        folder: the cache of this machine.
        budget: bytes that the cache may hold.
    """

    def __init__(self, source: Remote, prefix: str, folder: Path, budget: int) -> None:
        self.source, self.prefix, self.folder, self.budget = source, prefix, folder, budget
        self.threads: ThreadPoolExecutor | None = None
        self.downloads: dict[str, Future[None]] = {}  # in the background, by sha256
        self.last_use: dict[str, float] = {}
        self.prefetched: set[str] = set()  # and not opened yet
        self.warned = False
        self.folder.mkdir(parents=True, exist_ok=True)

    def __getstate__(self) -> dict[str, object]:
        """Leave out threads and their work when the cache is sent to another process."""
        return {**self.__dict__, "threads": None, "downloads": {}, "last_use": {}, "prefetched": set()}

    @contextmanager
    def open(self, wanted: ShardFile) -> Iterator[IO[bytes]]:
        """Hold a file open; download it first if it is not here."""
        path, sha256 = self._path(wanted), wanted.sha256
        while True:
            try:
                file = path.open("rb")
                break
            except FileNotFoundError:
                self._warn_if_too_small(sha256)
                self._download(wanted)
        self.prefetched.discard(sha256)
        with file:  # even if another process removes the file now, what is open stays readable
            now = time.monotonic()
            if now - self.last_use.get(sha256, -TOUCH_INTERVAL) >= TOUCH_INTERVAL:
                self.last_use[sha256] = now
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)
            yield file

    def read(self, file: ShardFile, offset: int, size: int) -> bytes:
        """Read from a file; download it first if it is not here."""
        with self.open(file) as opened:
            return os.pread(opened.fileno(), size, offset)

    def announce(self, files: Sequence[ShardFile]) -> None:
        """Download files in the background, in this order."""
        if self.threads is None:
            self.threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="shard-cache")
        self.downloads = {sha256: future for sha256, future in self.downloads.items() if not future.done()}
        for file in files:
            if file.sha256 not in self.downloads and not self._path(file).exists():
                self.downloads[file.sha256] = self.threads.submit(self._prefetch, file)

    def drop(self, file: ShardFile) -> bool:
        """Remove a copy that was damaged on this disk; another one can be downloaded."""
        remove(self._path(file), self.folder)
        return True

    def close(self) -> None:
        """Stop downloading in the background."""
        if self.threads is not None:
            self.threads.shutdown(wait=False, cancel_futures=True)

    def _path(self, file: ShardFile) -> Path:
        """Return where a file is cached; DamagedError for a checksum that is none, which could lead anywhere."""
        if not is_sha256(file.sha256):
            address = f"{self.source.address}/{self.prefix}/{file.name}"
            raise DamagedError(f"{address} has no sha256 in its index; push it again.")
        return self.folder / file.sha256

    def _prefetch(self, file: ShardFile) -> None:
        """Download a file ahead of its use; an error is reported when the file is used."""
        with contextlib.suppress(UserError, OSError):
            self._download(file)
            self.prefetched.add(file.sha256)

    def _warn_if_too_small(self, sha256: str) -> None:
        """Print once that a file was downloaded ahead of its use and removed before it."""
        if sha256 in self.prefetched and not self.warned:
            self.warned = True
            say(
                f"the cache {self.folder} is too small: shards are removed before they are used, and downloaded again; "
                f"raise data.disk_gb (now {self.budget / 1e9:g}), or lower data.streams or data.window (docs/data.md, "
                "Order)."
            )

    def _download(self, file: ShardFile) -> None:
        """Download a file; of several processes and threads that want it one does, the others wait."""
        name, size, sha256 = file
        path, part = self._path(file), self.folder / f"{sha256}.{size}.part"
        address = f"{self.source.address}/{self.prefix}/{name}"
        with exclusive_lock(_lock_of(path)):
            if path.exists():
                return
            for _ in range(ATTEMPTS):
                self._make_room(part, size, address)
                with_retries(address, lambda: self._receive(name, part, size))
                if file_digest(part) == sha256:
                    with exclusive_lock(self.folder / ROOM_LOCK):  # whoever counts sees it under one of its two names
                        part.replace(path)
                    return
                remove(part, self.folder)
            raise DamagedError(
                f"{address} has another sha256 than the index says, {ATTEMPTS} times; push the set again."
            )

    def _receive(self, name: str, part: Path, size: int) -> None:
        """Append what is missing of a file.

        Raises:
            TransientError: it is still not whole.
            DamagedError: it does not exist, or is longer than the index says.
        """
        address = f"{self.source.address}/{self.prefix}/{name}"
        with part.open("ab") as file:
            if file.tell() >= size:
                file.truncate(0)
            try:
                self.source.receive(f"{self.prefix}/{name}", LimitedFile(file, size, address), file.tell())
            except TooLargeError:
                file.truncate(0)
                raise DamagedError(
                    f"{address} has more than the {size} bytes of the index; push the set again."
                ) from None
            except NotFoundError as error:
                raise DamagedError(f"shard {str(error).rstrip('.')}; push the set again.") from None
            if file.tell() < size:
                raise TransientError(f"the connection broke after {file.tell()} of {size} bytes")

    def _make_room(self, part: Path, size: int, address: str) -> None:
        """Reserve room for a file, removing the least recently used; wait while running downloads need all of it.

        Only running downloads make others wait, and they never wait themselves: they have their room.
        """
        if size > self.budget:
            raise UserError(
                f"{address} has {size} bytes, more than the {self.budget} that data.disk_gb allows; raise "
                "data.disk_gb, or make smaller shards (data.shard_mb)."
            )
        while not self._reserve(part, size):
            time.sleep(POLL_INTERVAL)

    def _reserve(self, part: Path, size: int) -> bool:
        """Create ``part``, whose name holds its size, if there is room beside the running downloads."""
        with exclusive_lock(self.folder / ROOM_LOCK):
            total, removable = size, list[tuple[float, int, Path]]()
            for path in self.folder.iterdir():
                match = CACHED.fullmatch(path.name)
                if match is None or path == part:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    file_size = int(match[1] or status.st_size)
                    total += file_size
                    if match[1] is None or _is_abandoned(path):
                        removable.append((status.st_mtime, file_size, path))
            if total - sum(file_size for _, file_size, _ in removable) > self.budget:
                remove(part, self.folder)  # what an earlier attempt left would make the others wait in turn
                return False
            for _, file_size, path in sorted(removable):
                if total <= self.budget:
                    break
                remove(path, self.folder)
                total -= file_size
            part.touch()
            return True


def _lock_of(path: Path) -> Path:
    """Return the lock of a file that is downloaded: one of 256, since lock files stay."""
    return path.with_name(f"{path.name[:2]}.lock")


def _is_abandoned(part: Path) -> bool:
    """Return whether nobody is downloading this file any more."""
    try:
        with exclusive_lock(_lock_of(part), blocking=False):
            return True
    except BlockingIOError:
        return False

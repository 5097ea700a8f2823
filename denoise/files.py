"""Files and folders that appear whole or not at all, and their checksums."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from denoise.errors import UserError


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_text(tree: object) -> str:
    """Return plain data as JSON, the same text for the same data."""
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, tree: object) -> None:
    """Write plain data as JSON, whole or not at all, the same bytes for the same data."""
    work = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_text(json_text(tree), encoding="utf-8")
        work.replace(path)
    except OSError as error:
        with suppress(OSError):
            work.unlink()
        raise _told(error, path) from None


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder and put it in place whole, replacing an older one.

    Raises:
        UserError: the disk is full or the place may not be written; nothing is left behind, what was there stays.
    """
    work = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        with put_in_place(work, folder):
            write(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def put_in_place(work: Path, folder: Path) -> Iterator[None]:
    """Put the folder ``work``, when the block has filled it, in the place of ``folder``; after an error it stays.

    Raises:
        UserError: the disk is full or the place may not be written; what was there stays.
    """
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield
        _sync(work)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _told(error, folder) from None


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder, made where there is none, against other processes.

    Raises:
        UserError: another process holds it; ``doing`` says what it does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is {doing} {folder.parent}; wait for it to end.") from None
    finally:
        os.close(handle)


def _told(error: OSError, path: Path) -> UserError:
    """Say what kept ``path`` from being written; a full disk is the one that people meet."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk is full: {path} could not be written; free some space and run the same command again."
        )
    return UserError(
        f"{path} could not be written: {error.strerror or error}; check the folder and run the same command again."
    )


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())

"""Atomic files and folders, locks between processes, and checksums.

A file or folder appears under its name by one rename when it is complete. What a killed process leaves has a hidden
name of its own, and its locks go with it.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from denoise.errors import UserError

SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,199}")  # of runs, sets and models: one component of a path, visible


def is_sha256(value: object) -> bool:
    """Return whether a value from elsewhere is a sha256 in hex, and so safe as the name of a file."""
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def require_name(value: object, what: str) -> str:
    """Return a name from elsewhere, once it is clear that it cannot lead out of the folder it is used in.

    Args:
        value: the name.
        what: where it comes from, for the message: "--name", "the run of state.json".

    Raises:
        UserError: it is not one visible component of a path.
    """
    if isinstance(value, str) and NAME.fullmatch(value):
        return value
    raise UserError(
        f"{what} is {value!r}, which cannot be a name: use up to 200 letters, digits and . _ + = , - and begin with a "
        "letter or digit."
    )


def remove(path: Path, folder: Path) -> None:
    """Delete a file or a folder of ours that lies below ``folder``; do nothing where there is none.

    A symbolic link is deleted, not what it points to.

    Raises:
        UserError: the path, with all links in its parents followed, is not below the folder.
    """
    parent, root = path.parent.resolve(), folder.resolve()
    if path.name in ("", ".", "..") or not parent.is_relative_to(root):
        raise UserError(f"{path} is not below {folder}, so it is not deleted; this is a defect, please report it.")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_digest(path: Path, sha256: str) -> bool:
    """Return whether a file exists and has this sha256."""
    return path.is_file() and file_digest(path) == sha256


def json_text(tree: object) -> str:
    """Return plain data as JSON, the same text for the same data."""
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, tree: object) -> None:
    """Write plain data as JSON, the same bytes for the same data; otherwise as ``write_bytes``."""
    write_bytes(path, json_text(tree).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; make its folder.

    Raises:
        UserError: the disk is full or the path cannot be written; what was there stays.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as work:
            work.write_bytes(data)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` on a new folder and move it to ``folder``, replacing an older one.

    Raises:
        UserError: the disk is full or the path cannot be written; nothing is left behind, what was there stays.
    """
    with explain_write_errors(folder), atomic_folder(folder) as work:
        write(work)


@contextmanager
def atomic_file(path: Path, work: Path | None = None) -> Iterator[Path]:
    """Hand out the path of a temporary file, and rename it to ``path`` when the block has written it.

    The folder must exist. After an error what was there stays, and the temporary file is deleted.

    Args:
        path: the final path.
        work: the temporary path; one beside ``path``, of this process, by default. Give a path of your own where
            writers exclude each other: the next one deletes there what a killed process has left.
    """
    work = work or path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        work.unlink(missing_ok=True)
        yield work
        work.replace(path)
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, work: Path | None = None, resume: bool = False) -> Iterator[Path]:
    """Hand out a temporary folder, and rename it to ``folder`` when the block has filled it.

    An older ``folder`` is replaced; after an error it stays.

    Args:
        folder: the final path.
        work: the temporary folder, on the same disk; as for ``atomic_file``.
        resume: hand out ``work`` with the files that an earlier attempt has left there, and leave it after an error;
            otherwise it starts empty and is deleted after an error.
    """
    work = work or folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    old = work.with_name(f"{work.name}.old")
    if old.exists() and not folder.exists():  # a process was killed between the two renames below
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        _sync(work)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
    finally:
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: Path, target: Path, symbolic: bool = False) -> None:
    """Make ``target`` a hard link to ``source``; on another disk a symbolic link if ``symbolic``, else a copy."""
    source = source.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        if symbolic:
            target.symlink_to(source)
        else:
            shutil.copyfile(source, target)


@contextmanager
def exclusive_lock(path: Path, blocking: bool = True) -> Iterator[None]:
    """Hold a lock between processes and between threads; the system frees it when the process ends, also by a kill.

    Args:
        path: an existing folder, or a lock file, which is made with its folder where there is none and stays.
        blocking: wait until the lock is free.

    Raises:
        BlockingIOError: the lock is held elsewhere, and ``blocking`` is off.
    """
    if path.is_dir():
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextmanager
def lock_folder(folder: Path, action: str) -> Iterator[None]:
    """Hold a folder, made where there is none, against other processes.

    Args:
        folder: the folder.
        action: what the holder does to its parent, for the message: "sharding into".

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder, blocking=False))
        except BlockingIOError:
            raise UserError(f"another process is {action} {folder.parent}; wait for it to end.") from None
        yield


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError that says why ``path`` could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {path} could not be written; free some space and run the same command again."
            ) from None
        raise UserError(
            f"{path} could not be written: {error.strerror or error}; check the folder and run the same command again."
        ) from None


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())

"""Files and folders put in place whole or not at all, their bytes checked first."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from denoise.errors import UserError


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_valid(path: Path, sha256: str) -> bool:
    """Tell whether the file is there and is the expected one."""
    return path.is_file() and sha256_of(path) == sha256


def wrong_checksum(name: str, expected: str, got: str) -> UserError:
    """Say that a file is not the expected one."""
    return UserError(
        f"{name} has the wrong checksum (expected sha256 {expected}, got {got}): it is damaged or another version, "
        f"so it was not kept; fetch again or give a good copy with --mirror FOLDER_OR_URL"
    )


# --- downloads ---------------------------------------------------------------------------------------------------


def copy(source: Path, target: Path, sha256: str | None = None) -> None:
    """Copy a file and check what was read; ``target`` appears when it is complete, never before."""
    write(target, source.read_bytes(), sha256, str(source))


def write(target: Path, data: bytes, sha256: str | None = None, name: str = "") -> None:
    """Write a whole file, after checking its bytes; ``name`` says where they come from."""
    if sha256 and (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise wrong_checksum(name, sha256, digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(target)
    except OSError:  # a full disk, most often
        part.unlink(missing_ok=True)
        raise


def link(source: Path, target: Path, symbolic: bool = False) -> None:
    """Make ``target`` the same file as ``source`` without taking space.

    Where the two are on different disks it becomes a symbolic link if ``symbolic``, else a copy.
    """
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
def exclusive_lock(lock: Path) -> Iterator[None]:
    """Keep other processes that use the same lock file waiting; the system frees it even after a kill."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Hand out an empty folder that takes the place of ``folder`` when all went well, and vanishes when not.

    It lies two levels up, beside the parent, so that nothing an interrupted call left can count as part of the parent.
    """
    beside = folder.parent.parent / f".{folder.parent.name}-{folder.name}"
    fresh, old = beside.with_suffix(".new"), beside.with_suffix(".old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        folder.parent.mkdir(exist_ok=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

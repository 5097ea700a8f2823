"""Atomic files and folders, locks between processes, and checksums.

A file or folder appears under its name by one rename when it is complete. What a killed process leaves has a hidden
name of its own, and its locks go with it.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from denoise.errors import UserError

SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"\w(?:[\w .+=,-]*[\w.+=,-])?")  # of runs, sets and models: one component of a path, visible
MAX_OWN_BYTES = 200  # of such a name
MAX_NAME_BYTES, LONG_NAME_BYTES = 255, 64  # of a file's name: what file systems take; what is replaced by a digest
NAME_FORM = "use at most 200 bytes of letters, digits, blanks and . _ + = , - and begin with a letter or digit"


def is_sha256(value: object) -> bool:
    """Return whether a value from elsewhere is a sha256 in hex, and so safe as the name of a file."""
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def is_name(value: object) -> bool:
    """Return whether a value from elsewhere can name a run, a set or a model: it cannot lead out of a folder."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None and len(os.fsencode(value)) <= MAX_OWN_BYTES


def require_name(value: object, what: str) -> str:
    """Return a name from elsewhere that ``is_name``.

    Args:
        value: the name.
        what: where it comes from, for the message: "--name", "the run of state.json".

    Raises:
        UserError: it is not one visible component of a path.
    """
    if is_name(value):
        return str(value)
    raise UserError(f"{what} is {value!r}, which cannot be a name: {NAME_FORM}.")


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
    """Return plain data as JSON, the same text for the same data; NaN and infinities, which JSON has not, as null."""
    return json.dumps(finite_or_null(tree), indent=1, sort_keys=True, allow_nan=False) + "\n"


def json_line(row: object) -> str:
    """Return plain data as one line of JSON, as ``json_text`` otherwise."""
    return json.dumps(finite_or_null(row), allow_nan=False) + "\n"


def finite_or_null(tree: Any) -> Any:
    """Return plain data with None for every number that is not finite, such as the PSNR of equal images."""
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, Mapping):
        return {key: finite_or_null(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite_or_null(value) for value in tree]
    return tree


def fitting_name(name: str, end: str = "") -> str:
    """Return ``name`` with ``end`` as the name of a file; of a name too long for it a digest replaces the rest."""
    encoded, room = os.fsencode(name), MAX_NAME_BYTES - len(os.fsencode(end))
    if len(encoded) <= room:
        return name + end
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: room - 13].decode('utf-8', 'ignore')}~{digest}{end}"


def file_stems(names: Sequence[str]) -> dict[str, str]:
    """Return what the files made of each sample are called: its name without suffix, folders joined by underscores.

    Names that this makes equal, such as those of a.png and a.jpg, get a digest each.
    """
    stems = {name: re.sub(r"(?<=[^/])\.[^./]+$", "", name).replace("/", "_") for name in names}
    counts = Counter(stems.values())
    digests = {name: hashlib.sha256(name.encode()).hexdigest()[:12] for name in names if counts[stems[name]] > 1}
    return {name: f"{stem}~{digests[name]}" if name in digests else stem for name, stem in stems.items()}


def work_path(path: Path) -> Path:
    """Return a hidden temporary path beside ``path``, of this process; a long name is not made longer."""
    encoded = os.fsencode(path.name)
    stem = path.name if len(encoded) <= LONG_NAME_BYTES else hashlib.sha256(encoded).hexdigest()[:16]
    return path.with_name(f".{stem}.{os.getpid()}.partial")


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
    work = work or work_path(path)
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
    work = work or work_path(folder)
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


def refuse_foreign(folder: Path, known: Collection[str], what: str) -> None:
    """Refuse to make a place ``what`` ("a model"), which replaces a folder as a whole, if other things are there.

    Raises:
        UserError: it is no folder with a name, or holds other files than those ``known`` by their names.
    """
    if folder.name in ("", "..") or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is no folder that {what} can replace; give another by its name, like out/mine.")
    others = sorted(path.name for path in folder.glob("*") if path.name not in known)
    if others:
        raise UserError(f"{folder} holds {others[0]}, which is no part of {what} and would be lost; give another.")


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

"""Files from elsewhere, each checked: downloads that resume, copies, links, the members of archives; whole folders."""

import fcntl
import gzip
import hashlib
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from denoise.errors import UserError

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16  # bytes; what a broken connection loses at most
CONNECTIONS = 8
ATTEMPTS = 4
PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two packets
LARGEST_PICTURE = 1 << 28  # bytes of one picture in an archive
ADVICE = "check the network, or give a copy with --mirror FOLDER_OR_URL"


class NotThereError(UserError):
    """The server answers, but has no such file."""


class _BrokenError(Exception):
    """An attempt that failed in a way that the next one may not."""


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


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    advance: Callable[[float], None] | None = None,
    session: "requests.Session | None" = None,
) -> Path:
    """Bring one file over http(s); ``target`` appears when it is complete and verified, never before.

    What arrived before an interruption is kept in ``target``.part and continued, here and by the next call, where the
    server can (Range and If-Range, RFC 9110) and the file is still the same one.

    Args:
        url: the address.
        target: the file to write.
        sha256: the expected checksum, if known.
        advance: told the number of bytes as they arrive; a negative number takes back what has to come again.
        session: connections to use again.

    Raises:
        NotThereError: the server has no such file.
        UserError: no connection after some attempts, an answer other than the file, or a wrong checksum.
    """
    import requests

    if session is None:
        with requests.Session() as own:
            return download(url, target, sha256, advance, own)
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            continued = _receive(url, part, session, advance or _ignore)
        except _BrokenError as error:
            reason = str(error)
            continue
        digest = sha256_of(part) if sha256 else None
        if digest == sha256:
            part.replace(target)
            _discard(part)
            return target
        if not continued:
            _discard(part)
            raise wrong_checksum(url, str(sha256), str(digest))
        _forget(part)  # the two halves may not belong together: start afresh
        reason = "its parts do not fit together"
    raise UserError(f"cannot download {url} ({reason}): {ADVICE}")


def download_all(files: Sequence[tuple[str, Path, str]], advance: Callable[[float], None]) -> None:
    """Bring many small files, a few at a time; the first failure ends it (what is complete stays).

    Args:
        files: address, target and sha256 of each.
        advance: told 1 for each complete file.
    """
    import requests

    with requests.Session() as session, ThreadPoolExecutor(CONNECTIONS) as pool:
        for url, target, sha256 in files[:1]:  # one alone: where no server answers, one wait is enough to know
            download(url, target, sha256, session=session)
            advance(1)
        waiting = [pool.submit(download, url, target, sha256, None, session) for url, target, sha256 in files[1:]]
        try:
            for done in as_completed(waiting):
                done.result()
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def size_of(url: str) -> int | None:
    """Return how many bytes a download will have; None where the server does not say."""
    import requests

    try:
        answer = requests.head(url, allow_redirects=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})
    except requests.RequestException:
        return None  # the download itself will say what is wrong
    length = answer.headers.get("Content-Length", "")
    return int(length) if answer.ok and length.isdecimal() else None


def read_text(url: str) -> str:
    """Return a small text file of a site; the errors are those of ``download``."""
    with tempfile.TemporaryDirectory() as folder:
        return download(url, Path(folder, "text")).read_text(encoding="utf-8")


def _receive(url: str, part: Path, session: "requests.Session", advance: Callable[[float], None]) -> bool:
    """Bring the missing rest of one file; tell whether it continues what an earlier attempt left in ``part``."""
    import requests
    import urllib3

    have, validator = _left(url, part)
    counted = part.stat().st_size if part.exists() else 0
    # Without "identity" a server may call a .tgz "gzip-encoded tar", and the bytes stored would be other ones.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            _check_status(answer, url, part)
            continued = bool(have) and answer.status_code == 206
            if continued and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                _forget(part)
                raise _BrokenError("the server sent another part than the one asked for")
            if not continued:
                _begin(url, part, answer.headers)
                advance(-counted)
            length = answer.headers.get("Content-Length", "")
            received = 0
            with part.open("ab") as file:
                for chunk in answer.raw.stream(CHUNK, decode_content=False):
                    file.write(chunk)
                    received += len(chunk)
                    advance(len(chunk))
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _BrokenError(_reason(error)) from error
    except requests.RequestException as error:
        raise UserError(f"cannot download {url} ({_reason(error)}): {ADVICE}") from error
    if length.isdecimal() and received != int(length):
        raise _BrokenError(f"the connection broke after {received} of {length} bytes")
    return continued


def _check_status(answer: "requests.Response", url: str, part: Path) -> None:
    """Let pass what carries the file; sort the other answers into try again and give up."""
    status = answer.status_code
    if status in (200, 206):
        return
    if status == 416:  # what is left is longer than the file: it was another one
        _forget(part)
        raise _BrokenError("the file changed on the server")
    if status in (404, 410):
        raise NotThereError(f"{url} does not exist (the server answered {status}): {ADVICE}")
    if status == 429 or status >= 500:
        raise _BrokenError(f"the server answered {status} {answer.reason}")
    raise UserError(f"cannot download {url} (the server answered {status} {answer.reason}): {ADVICE}")


def _reason(error: Exception) -> str:
    """The last link of the chain that requests and urllib3 wrap around a cause, e.g. "Connection refused"."""
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    return str(cause).rpartition(": ")[2] or type(error).__name__


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _left(url: str, part: Path) -> tuple[int, str]:
    """How many bytes an earlier attempt left that can be continued, and what tells that the file is still the same."""
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
        return (part.stat().st_size, notes["validator"]) if notes["url"] == url else (0, "")
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def _begin(url: str, part: Path, headers: Mapping[str, str]) -> None:
    """Start from nothing, and note beside it what a later attempt needs to continue."""
    _discard(part)
    etag = headers.get("ETag", "")
    # A weak ETag promises the same meaning, not the same bytes, so it may not be used to continue.
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    if validator and headers.get("Accept-Ranges") != "none":
        _notes(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _forget(part: Path) -> None:
    """Make the next attempt start afresh: a part without notes is never continued."""
    _notes(part).unlink(missing_ok=True)


def _discard(part: Path) -> None:
    _forget(part)
    part.unlink(missing_ok=True)


def _ignore(_: float) -> None:
    """Count nothing."""


# --- files and folders put in place --------------------------------------------------------------------------------


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
def alone(lock: Path) -> Iterator[None]:
    """Keep other processes that use the same lock file waiting; the system frees it even after a kill."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
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


# --- archives ----------------------------------------------------------------------------------------------------


def tar_files(archive: Path | IO[bytes], name: str, limit: int) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield path and bytes of the files in a tar, one in memory at a time; tars inside it count as folders.

    Nothing is unpacked here. A member that leads out of the folder (absolute, ..), or is a link or a device, is a
    UserError; so are more than ``limit`` bytes in all, an archive that is cut short, and one with a broken header in
    the middle, where tarfile would end without a word.

    Args:
        archive: a path (compressed or not) or an open file.
        name: how to call it in errors.
        limit: bytes that the members may have together.
    """
    try:
        with _open_tar(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                    raise UserError(f"{name} is not safe to unpack: its member {member.name!r} is a link or leads out")
                limit -= member.size
                if limit < 0:
                    raise UserError(f"{name} holds more data than the set has: it is no copy of it, so use another one")
                stream = tar.extractfile(member)
                if stream is None:
                    continue
                if path.suffix == ".tar":
                    inner = tar_files(stream, f"{name}: {path}", limit + member.size)
                    yield from ((path.with_suffix("") / file, data) for file, data in inner)
                elif member.size > LARGEST_PICTURE:
                    raise UserError(f"{name} is not the expected archive: its member {path} has {member.size} bytes")
                else:
                    yield path, stream.read()
            _check_end(tar)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"{name} is damaged or no tar archive ({reason}): get a whole copy of it") from error


def _open_tar(archive: Path | IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(archive) if isinstance(archive, Path) else tarfile.open(fileobj=archive)


def _check_end(tar: tarfile.TarFile) -> None:
    """A tar ends with blocks of zeros; anything else where reading stopped is damage."""
    assert tar.fileobj is not None  # noqa: S101 - mypy: a tar that was just read has one
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it breaks off after {tar.offset} bytes")

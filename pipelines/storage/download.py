"""Downloads that resume, each file checked."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.storage.placing import sha256_of, wrong_checksum

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16  # bytes; what a broken connection loses at most
CONNECTIONS = 8
ATTEMPTS = 4
PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two packets
ADVICE = "check the network, or give a copy with --mirror FOLDER_OR_URL"


class NotFoundError(UserError):
    """The server answers, but has no such file."""


class _TransientError(Exception):
    """An attempt that failed in a way that the next one may not."""


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
        except _TransientError as error:
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
                raise _TransientError("the server sent another part than the one asked for")
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
        raise _TransientError(_reason(error)) from error
    except requests.RequestException as error:
        raise UserError(f"cannot download {url} ({_reason(error)}): {ADVICE}") from error
    if length.isdecimal() and received != int(length):
        raise _TransientError(f"the connection broke after {received} of {length} bytes")
    return continued


def _check_status(answer: "requests.Response", url: str, part: Path) -> None:
    """Let pass what carries the file; sort the other answers into try again and give up."""
    status = answer.status_code
    if status in (200, 206):
        return
    if status == 416:  # what is left is longer than the file: it was another one
        _forget(part)
        raise _TransientError("the file changed on the server")
    if status in (404, 410):
        raise NotFoundError(f"{url} does not exist (the server answered {status}): {ADVICE}")
    if status == 429 or status >= 500:
        raise _TransientError(f"the server answered {status} {answer.reason}")
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

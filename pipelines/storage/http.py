"""Files from web servers: HttpRemote, and downloads that resume and are checked."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from denoise.errors import UserError
from denoise.files import file_digest
from pipelines.storage.base import TIMEOUT, NotFoundError, TransientError, with_retries, wrong_checksum

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16  # bytes; the most that a broken connection loses
CONNECTIONS = 8
ATTEMPTS = 4  # of a download
DOWNLOAD_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two packets; public servers are slow
ADVICE = "check the network, or give a copy with --mirror FOLDER_OR_URL"


class HttpRemote:
    """Files under an address of a web server, read only; a ``Remote``.

    Args:
        address: ``http(s)://...``.
        key: the parameter that holds it, for messages.
    """

    def __init__(self, address: str, key: str = "data.url") -> None:
        import requests

        self.address, self.key, self.session = address, key, requests.Session()

    def receive(self, path: str, file: IO[bytes], start: int) -> None:
        """Append a file from byte ``start`` on."""
        url = f"{self.address}/{path}"
        try:
            with _get(self.session, url, f"check {self.key}", TIMEOUT, start) as response:
                if start and response.status_code == 200:  # a server without ranges sends all of it again
                    _empty(file)
                _copy_body(response, file)
        except _RangeError:
            if start:
                _empty(file)
            raise


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    advance: Callable[[float], None] | None = None,
    session: "requests.Session | None" = None,
) -> Path:
    """Download one file; ``target`` appears when it is complete and verified, never before.

    What arrived before an interruption is kept in ``target``.part and continued, here and by the next call, where the
    server can (Range and If-Range, RFC 9110) and the file is still the same one.

    Args:
        url: the address.
        target: the file to write.
        sha256: the expected checksum, if known.
        advance: called with the number of bytes as they arrive; a negative number takes back what has to come again.
        session: connections to use again.

    Raises:
        NotFoundError: the server has no such file.
        UserError: no connection after some attempts, an answer other than the file, or a wrong checksum.
    """
    import requests

    if session is None:
        with requests.Session() as own:
            return download(url, target, sha256, advance, own)
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)

    def attempt() -> Path:
        resumed = _download_rest(url, part, session, advance or _ignore)
        digest = file_digest(part) if sha256 else None
        if digest == sha256:
            part.replace(target)
            _delete_part(part)
            return target
        if resumed:
            _forbid_resuming(part)
            raise TransientError("its parts do not fit together")
        _delete_part(part)
        raise wrong_checksum(url, str(sha256), str(digest))

    try:
        return with_retries(url, attempt, ATTEMPTS)
    except TransientError as error:
        raise UserError(f"cannot download {url} ({error}): {ADVICE}") from None


def download_all(files: Sequence[tuple[str, Path, str]], advance: Callable[[float], None]) -> None:
    """Download many small files, a few at a time; the first failure ends it, and what is complete stays.

    Args:
        files: address, target and sha256 of each.
        advance: called with 1 for each complete file.
    """
    import requests

    with requests.Session() as session, ThreadPoolExecutor(CONNECTIONS) as pool:
        for url, target, sha256 in files[:1]:  # by itself: where no server answers, waiting for one file is enough
            download(url, target, sha256, session=session)
            advance(1)
        downloads = [pool.submit(download, url, target, sha256, None, session) for url, target, sha256 in files[1:]]
        try:
            for finished in as_completed(downloads):
                finished.result()
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def size_of(url: str) -> int | None:
    """Return how many bytes a download will have; None where the server does not say."""
    import requests

    headers = {"Accept-Encoding": "identity"}
    try:
        response = requests.head(url, allow_redirects=True, timeout=DOWNLOAD_TIMEOUT, headers=headers)
    except requests.RequestException:
        return None  # the download itself will say what is wrong
    length = response.headers.get("Content-Length", "")
    return int(length) if response.ok and length.isdecimal() else None


def read_text(url: str) -> str:
    """Return a small text file; the errors are those of ``download``."""
    with tempfile.TemporaryDirectory() as folder:
        return download(url, Path(folder, "text")).read_text(encoding="utf-8")


class _RangeError(TransientError):
    """The server cannot continue what is there: the next attempt has to start from nothing."""


@contextmanager
def _get(
    session: "requests.Session",
    url: str,
    advice: str,
    timeout: float | tuple[float, float],
    start: int = 0,
    validator: str = "",
) -> "Iterator[requests.Response]":
    """Request a file from byte ``start`` on and hand out the response: status 200 for all of it, 206 for the rest.

    Args:
        session: connections to use again.
        url: the address.
        advice: what the user can do about an error.
        timeout: seconds to connect and between two packets.
        start: bytes that are there.
        validator: the ETag or the date of these bytes; the server sends all of a file that has another one.

    Raises:
        NotFoundError: the server has no such file.
        TransientError: the connection failed, also within the block, or the server cannot answer now.
        UserError: another answer, or an address that is none.
    """
    import requests
    import urllib3

    # Without "identity" a server may call a .tgz "gzip-encoded tar", and the bytes stored would be other ones.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and validator:
        headers["If-Range"] = validator
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            _check_status(response, url, advice, start)
            yield response
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise TransientError(_cause(error)) from error
    except requests.RequestException as error:
        raise UserError(f"cannot download {url} ({_cause(error)}): {advice}") from error


def _check_status(response: "requests.Response", url: str, advice: str, start: int) -> None:
    """Return if the response carries the file from ``start`` on, or all of it; otherwise raise as ``_get``."""
    status = response.status_code
    if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise _RangeError("the server sent another part than the one asked for")
    if status in (200, 206):
        return
    if status == 416:  # what is there is longer than the file
        raise _RangeError("the file changed on the server")
    answer = f"the server answered {status} {response.reason}"
    if status in (404, 410):
        raise NotFoundError(f"{url} does not exist ({answer}): {advice}")
    if status == 429 or status >= 500:
        raise TransientError(answer)
    raise UserError(f"cannot download {url} ({answer}): {advice}")


def _copy_body(response: "requests.Response", file: IO[bytes], advance: Callable[[float], None] | None = None) -> None:
    """Append the body to a file; TransientError where it ends too early."""
    received = 0
    for chunk in response.raw.stream(CHUNK, decode_content=False):
        file.write(chunk)
        received += len(chunk)
        if advance:
            advance(len(chunk))
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and received != int(length):
        raise TransientError(f"the connection broke after {received} of {length} bytes")


def _cause(error: Exception) -> str:
    """Return the last link of the chain that requests and urllib3 wrap around a cause, e.g. "Connection refused"."""
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    return str(cause).rpartition(": ")[2] or type(error).__name__


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


# The part of a download, and the notes beside it.


def _download_rest(url: str, part: Path, session: "requests.Session", advance: Callable[[float], None]) -> bool:
    """Download what is missing of one file; return whether it continues what an earlier attempt left in ``part``."""
    start, validator = _resumable(url, part)
    counted = part.stat().st_size if part.exists() else 0
    try:
        with _get(session, url, ADVICE, DOWNLOAD_TIMEOUT, start, validator) as response:
            resumed = bool(start) and response.status_code == 206
            if not resumed:
                _start_part(url, part, response.headers)
                advance(-counted)
            with part.open("ab") as file:
                _copy_body(response, file, advance)
    except _RangeError:
        _forbid_resuming(part)
        raise
    return resumed


def _notes_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """Return how many bytes of an earlier attempt can be continued, and what identifies their version of the file."""
    try:
        notes = json.loads(_notes_path(part).read_text(encoding="utf-8"))
        return (part.stat().st_size, notes["validator"]) if notes["url"] == url else (0, "")
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def _start_part(url: str, part: Path, headers: Mapping[str, str]) -> None:
    """Delete an older part, and write beside the new one the notes that a later attempt needs to continue."""
    _delete_part(part)
    etag = headers.get("ETag", "")
    # A weak ETag promises the same meaning, not the same bytes, so it may not be used to continue.
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    if validator and headers.get("Accept-Ranges") != "none":
        _notes_path(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _forbid_resuming(part: Path) -> None:
    """Make the next attempt start from nothing: a part without notes is never continued."""
    _notes_path(part).unlink(missing_ok=True)


def _delete_part(part: Path) -> None:
    _forbid_resuming(part)
    part.unlink(missing_ok=True)


def _ignore(_: float) -> None:
    """Count nothing."""

"""Files from web servers: HttpRemote, and downloads that resume and are checked."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.documents import parse_json
from denoise.errors import UserError
from denoise.files import file_digest, remove
from denoise.redaction import without_passwords
from pipelines.storage.base import (
    TIMEOUT,
    LimitedFile,
    Sink,
    TooLargeError,
    TransientError,
    with_retries,
    wrong_checksum,
)
from pipelines.storage.request import RangeError, content_length, copy_body, empty, get

if TYPE_CHECKING:
    import requests

LARGEST_IMAGE = 1 << 26  # bytes of a file that is downloaded, where no other limit is given
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

    def receive(self, path: str, file: Sink, start: int) -> None:
        """Append a file from byte ``start`` on."""
        url = f"{self.address}/{path}"
        try:
            with get(self.session, url, f"check {self.key}", TIMEOUT, start) as response:
                if start and response.status_code == 200:  # a server without ranges sends all of it again
                    empty(file)
                copy_body(response, file)
        except RangeError:
            if start:
                empty(file)
            raise


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    advance: Callable[[float], None] | None = None,
    session: "requests.Session | None" = None,
    *,
    limit: int = LARGEST_IMAGE,
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
        limit: bytes that the file may have.

    Raises:
        NotFoundError: the server has no such file.
        TooLargeError: the file has more bytes than the limit; nothing of it is kept.
        UserError: no connection after some attempts, an answer other than the file, or a wrong checksum.
    """
    import requests

    if session is None:
        with requests.Session() as own:
            return download(url, target, sha256, advance, own, limit=limit)
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)

    def attempt() -> Path:
        try:
            resumed = _download_rest(url, part, session, advance or _ignore, limit)
        except TooLargeError:
            _delete_part(part)
            raise
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
    except (requests.RequestException, ValueError):
        return None  # the download itself will say what is wrong
    return content_length(response) if response.ok else None


def read_text(url: str, limit: int = LARGEST_IMAGE) -> str:
    """Return a text file of ``limit`` bytes at most; the errors are those of ``download``."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return download(url, Path(folder, "text"), limit=limit).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{url} is not text in UTF-8 ({error.reason}): {ADVICE}") from None


# The part of a download, and the notes beside it.


def _download_rest(
    url: str, part: Path, session: "requests.Session", advance: Callable[[float], None], limit: int
) -> bool:
    """Download what is missing of one file; return whether it continues what an earlier attempt left in ``part``."""
    start, validator = _resumable(url, part)
    counted = part.stat().st_size if part.exists() else 0
    try:
        with get(session, url, ADVICE, DOWNLOAD_TIMEOUT, start, validator) as response:
            resumed = bool(start) and response.status_code == 206
            if not resumed:
                _start_part(url, part, response.headers)
                advance(-counted)
            with part.open("ab") as file:
                copy_body(response, LimitedFile(file, limit, url), advance)
    except RangeError:
        _forbid_resuming(part)
        raise
    return resumed


def _notes_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """Return how many bytes of an earlier attempt can be continued, and what identifies their version of the file."""
    try:
        notes = parse_json(_notes_path(part).read_bytes())
        return (part.stat().st_size, str(notes["validator"])) if notes["url"] == without_passwords(url) else (0, "")
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def _start_part(url: str, part: Path, headers: Mapping[str, str]) -> None:
    """Delete an older part, and write beside the new one the notes that a later attempt needs to continue."""
    _delete_part(part)
    etag = headers.get("ETag", "")
    # A weak ETag promises the same meaning, not the same bytes, so it may not be used to continue.
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    if validator and headers.get("Accept-Ranges") != "none":
        _notes_path(part).write_text(
            json.dumps({"url": without_passwords(url), "validator": validator}), encoding="utf-8"
        )


def _forbid_resuming(part: Path) -> None:
    """Make the next attempt start from nothing: a part without notes is never continued."""
    remove(_notes_path(part), part.parent)


def _delete_part(part: Path) -> None:
    _forbid_resuming(part)
    remove(part, part.parent)


def _ignore(_: float) -> None:
    """Count nothing."""

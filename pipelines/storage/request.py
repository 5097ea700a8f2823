"""One request to a web server: its errors, and its body, which arrives in time or not at all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.storage.base import NotFoundError, Sink, TransientError, refuse_untrusted

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16  # bytes; the most that a broken connection loses
SLOW_SECONDS, SLOW_BYTES = 30.0, 30_000  # a server that sends less than this in that time is as good as silent


class RangeError(TransientError):
    """The server cannot continue what is there: the next attempt has to start from nothing."""


@contextmanager
def get(
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
        refuse_untrusted(url, error)
        raise TransientError(_cause(error)) from error
    except (requests.RequestException, ValueError) as error:  # ValueError: a redirect to what is no address
        raise UserError(f"cannot download {url} ({_cause(error)}): {advice}") from error


def _check_status(response: "requests.Response", url: str, advice: str, start: int) -> None:
    """Return if the response carries the file from ``start`` on, or all of it; otherwise raise as ``get``."""
    status = response.status_code
    if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise RangeError("the server sent another part than the one asked for")
    if status in (200, 206):
        return
    if status == 416:  # what is there is longer than the file
        raise RangeError("the file changed on the server")
    answer = f"the server answered {status} {response.reason}"
    if status in (404, 410):
        raise NotFoundError(f"{url} does not exist ({answer}): {advice}")
    if status == 429 or status >= 500:
        raise TransientError(answer)
    raise UserError(f"cannot download {url} ({answer}): {advice}")


def copy_body(response: "requests.Response", file: Sink, advance: Callable[[float], None] | None = None) -> None:
    """Append the body to a file; TransientError where it ends too early, or comes so slowly that it never would."""
    received, counted, since = 0, 0, time.monotonic()
    while chunk := response.raw.read1(CHUNK, decode_content=False):  # what is there: a slow server is noticed
        file.write(chunk)
        received += len(chunk)
        if advance:
            advance(len(chunk))
        if time.monotonic() - since > SLOW_SECONDS:
            if received - counted < SLOW_BYTES:
                raise TransientError(f"the server sent only {received - counted} bytes in {SLOW_SECONDS:.0f} s")
            counted, since = received, time.monotonic()
    length = content_length(response)
    if length is not None and received != length:
        raise TransientError(f"the connection broke after {received} of {length} bytes")


def content_length(response: "requests.Response") -> int | None:
    """Return how many bytes the body has; None where the server does not say."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else None


def _cause(error: Exception) -> str:
    """Return the last link of the chain that requests and urllib3 wrap around a cause, e.g. "Connection refused"."""
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    return str(cause).rpartition(": ")[2] or type(error).__name__


def empty(file: Sink) -> None:
    """Cut a file to nothing."""
    file.seek(0)
    file.truncate()

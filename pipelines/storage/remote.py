"""Remotes by address: ``s3://BUCKET/PREFIX``, ``http(s)://...``, or a folder."""

import io
import re
from pathlib import Path
from urllib.parse import unquote

from denoise.errors import UserError
from pipelines.storage.base import LimitedFile, Remote, WritableRemote, with_retries
from pipelines.storage.folder import LocalRemote
from pipelines.storage.http import HttpRemote
from pipelines.storage.s3 import S3Remote

LARGEST = 1 << 26  # bytes of a small file, where no other limit is given
SCHEME = re.compile(r"(file(?=:/)|[A-Za-z][A-Za-z0-9+.-]*(?=://)):(//)?")  # anything else is the path of a folder


def remote(url: str, key: str = "data.url") -> S3Remote | HttpRemote | LocalRemote:
    """Return the remote at an address.

    Args:
        url: ``s3://BUCKET/PREFIX``, ``http(s)://...``, or a folder.
        key: the parameter that holds it, for messages.

    Raises:
        UserError: another kind of address.
    """
    match = SCHEME.match(url)
    if match is None:
        return LocalRemote(url, Path(url))
    scheme = match[1].lower()
    if scheme == "s3":
        return bucket_at(url, key)
    if scheme in ("http", "https"):
        return HttpRemote(url.rstrip("/"), key)
    if scheme == "file" and url.startswith("/", match.end()):
        return LocalRemote(url, Path(unquote(url[match.end() :])))
    raise UserError(f"{key}={url} is not understood; write s3://BUCKET/PREFIX, http(s)://..., or a folder.")


def bucket_at(url: str, key: str = "data.url") -> S3Remote:
    """Return the remote at ``s3://BUCKET/PREFIX``; ``key`` is the parameter that holds the address.

    Raises:
        UserError: no bucket is named.
    """
    address = url.rstrip("/")
    scheme, _, path = address.partition("://")
    name, _, prefix = path.partition("/")
    if scheme.lower() != "s3" or not name:
        raise UserError(f"{key}={url} names no bucket; write s3://BUCKET/PREFIX.")
    return S3Remote(address, name, prefix.strip("/"), key)


def writable_remote(url: str) -> WritableRemote:
    """Return the remote at an address, to write to.

    Raises:
        UserError: it cannot be written to, or is another kind of address.
    """
    target = remote(url)
    if isinstance(target, HttpRemote):  # there is no one way to write to a web server
        raise UserError(f"{url} is a web address, which can only be read; push to s3://BUCKET/PREFIX or a folder.")
    return target


def fetch_bytes(source: Remote, path: str, limit: int = LARGEST) -> bytes:
    """Return a small file, of ``limit`` bytes at most.

    Raises:
        NotFoundError: there is none.
        TooLargeError: it has more bytes.
    """
    address = f"{source.address}/{path}"

    def attempt() -> bytes:
        file = io.BytesIO()
        source.receive(path, LimitedFile(file, limit, address), 0)
        return file.getvalue()

    return with_retries(address, attempt)

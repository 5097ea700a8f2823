"""Remotes by address: ``s3://BUCKET/PREFIX``, ``http(s)://...``, or a folder."""

import io
from pathlib import Path
from urllib.parse import urlsplit

from denoise.errors import UserError
from pipelines.storage.base import Remote, WritableRemote, with_retries
from pipelines.storage.folder import LocalRemote
from pipelines.storage.http import HttpRemote
from pipelines.storage.s3 import S3Remote


def remote(url: str, key: str = "data.url") -> S3Remote | HttpRemote | LocalRemote:
    """Return the remote at an address.

    Args:
        url: ``s3://BUCKET/PREFIX``, ``http(s)://...``, or a folder.
        key: the parameter that holds it, for messages.

    Raises:
        UserError: another kind of address.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return bucket_at(url, key)
    if parts.scheme in ("http", "https"):
        return HttpRemote(url.rstrip("/"), key)
    if parts.scheme in ("", "file"):
        return LocalRemote(url, Path(parts.path))
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


def fetch_bytes(source: Remote, path: str) -> bytes:
    """Return a small file; NotFoundError where there is none."""

    def attempt() -> bytes:
        file = io.BytesIO()
        source.receive(path, file, 0)
        return file.getvalue()

    return with_retries(f"{source.address}/{path}", attempt)

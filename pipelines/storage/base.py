"""Files elsewhere: an S3 bucket, a web site, or another folder, behind one small interface.

The only file that imports boto3. Credentials, region and endpoint come from where boto3 looks for them: the environment
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), ~/.aws, or the machine's role.
"""

import io
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from denoise.errors import UserError
from pipelines.console import say

T = TypeVar("T")
PATIENCE = 600.0  # seconds that an unreachable server is waited for
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds between attempts, doubled each time
CHUNK = 1 << 20
PAGE = 1000  # objects in one answer to "what is there?", the most that S3 gives
TIMEOUT = 20.0  # seconds to connect, and between two packets
GONE = {"404", "NoSuchKey", "NotFound"}
REFUSED = {
    "403": "access is denied",
    "AccessDenied": "access is denied",
    "InvalidAccessKeyId": "the access key is not known",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "ExpiredToken": "the session token has expired",
    "NoSuchBucket": "there is no such bucket",
}


class NotFoundError(UserError):
    """The place can be reached, but has no such file."""


class TransientError(Exception):
    """An attempt that failed in a way that the next one may not."""


class Remote(Protocol):
    """Files under one address."""

    address: str

    def receive(self, path: str, file: IO[bytes], start: int) -> None:
        """Append the bytes of a file from ``start`` on; BrokenError where that may work later."""
        ...


class WritableRemote(Remote, Protocol):
    """Files under one address that can be written to."""

    def send(self, source: Path, path: str) -> None:
        """Store a file, whole or not at all; BrokenError where that may work later."""
        ...


def remote(url: str, key: str = "data.url") -> "S3Remote | HttpRemote | LocalRemote":
    """Return the place that an address names: ``s3://BUCKET/PREFIX``, ``http(s)://...``, or a folder.

    Args:
        url: the address.
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


def bucket_at(url: str, key: str = "data.url") -> "S3Remote":
    """Return the place on S3 that ``s3://BUCKET/PREFIX`` names; ``key`` is the parameter that holds it.

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
    """Return the place that an address names, to write to.

    Raises:
        UserError: it cannot be written to, or is another kind of address.
    """
    place = remote(url)
    if isinstance(place, HttpRemote):  # there is no one way to write to a web server
        raise UserError(f"{url} is a web address, which can only be read; push to s3://BUCKET/PREFIX or a folder.")
    return place


def fetch_bytes(place: Remote, path: str) -> bytes:
    """Return a small file; NotThereError where there is none."""

    def attempt() -> bytes:
        file = io.BytesIO()
        place.receive(path, file, 0)
        return file.getvalue()

    return with_retries(f"{place.address}/{path}", attempt)


def with_retries(what: str, attempt: Callable[[], T]) -> T:
    """Return what ``attempt`` returns, trying again, ever more slowly, while it is broken.

    Raises:
        UserError: it was broken for ten minutes.
    """
    deadline, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
    while True:
        try:
            return attempt()
        except TransientError as error:
            if time.monotonic() + pause > deadline:
                raise UserError(
                    f"{what} could not be transferred for {PATIENCE / 60:.0f} minutes ({error}); check the server and "
                    "the network, and run the same command again."
                ) from None
            say(f"{what}: {error}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


class S3Remote:
    """A prefix of a bucket on S3Remote or a server that speaks its protocol."""

    def __init__(self, address: str, bucket: str, prefix: str, key: str = "data.url") -> None:
        self.address, self.bucket, self.prefix, self.key = address, bucket, prefix, key
        self._local = threading.local()

    def receive(self, path: str, file: IO[bytes], start: int) -> None:
        """Append an object from byte ``start`` on."""
        span = {"Range": f"bytes={start}-"} if start else {}
        with self._translated(path):
            body = self._client().get_object(Bucket=self.bucket, Key=self._key(path), **span)["Body"]
            with body:
                for chunk in body.iter_chunks(CHUNK):
                    file.write(chunk)

    def send(self, source: Path, path: str) -> None:
        """Store an object; S3 shows it whole or not at all, also one that is sent in parts."""
        with self._translated(path):
            self._client().upload_file(str(source), self.bucket, self._key(path))

    def list(self, prefix: str) -> list[str]:
        """Return the paths that begin with a prefix, sorted; BrokenError where that may work later."""
        start, found = len(self._key("")), list[str]()
        with self._translated(f"{prefix}*"):
            pages = self._client().get_paginator("list_objects_v2")
            wanted = {"Bucket": self.bucket, "Prefix": self._key(prefix), "PaginationConfig": {"PageSize": PAGE}}
            for page in pages.paginate(**wanted):
                found += [entry["Key"][start:] for entry in page.get("Contents", ())]
        return sorted(found)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects in this order, whether or not they are there; BrokenError where that may work later."""
        for path in paths:  # one at a time: S3 promises no order within a request for many
            with self._translated(path):
                self._client().delete_object(Bucket=self.bucket, Key=self._key(path))

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _client(self) -> Any:
        """Return this thread's client: boto3's sessions are not to be shared between threads that create clients."""
        if not hasattr(self._local, "client"):
            import boto3
            from botocore.config import Config

            self._local.client = boto3.session.Session().client(
                "s3",
                config=Config(
                    connect_timeout=TIMEOUT,
                    read_timeout=TIMEOUT,
                    retries={"total_max_attempts": 1},  # ``with_retries`` tries again, and says so
                    # Servers that only speak S3's protocol do not all know the newer checksums; ours are in the index.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        return self._local.client

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Turn boto3's exceptions into ours."""
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions as boto
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise UserError(
                f"{self.address} needs credentials ({_sentence(error)}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials."
            ) from None
        except boto.ParamValidationError as error:
            raise UserError(f"{self.address} is no address on S3 ({_sentence(error)}); check {self.key}.") from None
        except (boto.ClientError, S3UploadFailedError) as error:
            code = _code(error)
            if code in GONE:
                raise NotFoundError(f"{self.address}/{path} does not exist.") from None
            if code in REFUSED:
                raise UserError(
                    f"{self.address}/{path}: {REFUSED[code]}; check {self.key} and the credentials."
                ) from None
            raise TransientError(f"the server answered {code}") from None
        except (boto.BotoCoreError, HTTPError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise  # the disk, not the network
            raise TransientError(_sentence(error)) from None


class HttpRemote:
    """Files under an address of a web server; read only."""

    def __init__(self, address: str, key: str = "data.url") -> None:
        import requests

        self.address, self.key, self.session = address, key, requests.Session()

    def receive(self, path: str, file: IO[bytes], start: int) -> None:
        """Append a file from byte ``start`` on."""
        import requests
        import urllib3

        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        try:
            with self.session.get(f"{self.address}/{path}", headers=headers, stream=True, timeout=TIMEOUT) as answer:
                if answer.status_code in (404, 410):
                    raise NotFoundError(f"{self.address}/{path} does not exist.")
                if answer.status_code in (401, 403):
                    raise UserError(f"{self.address}/{path}: access is denied; check {self.key}.")
                if answer.status_code not in (200, 206):
                    raise TransientError(f"the server answered {answer.status_code} {answer.reason}")
                if start and answer.status_code == 200:  # a server without ranges sends all of it again
                    file.seek(0)
                    file.truncate()
                for chunk in answer.raw.stream(CHUNK, decode_content=False):
                    file.write(chunk)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise TransientError(_sentence(error)) from None


class LocalRemote:
    """A folder, for example on a network disk."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address.rstrip("/"), folder

    def receive(self, path: str, file: IO[bytes], start: int) -> None:
        """Append a file from byte ``start`` on."""
        try:
            with (self.folder / path).open("rb") as source:
                source.seek(start)
                shutil.copyfileobj(source, file, CHUNK)
        except FileNotFoundError:
            raise NotFoundError(f"{self.address}/{path} does not exist.") from None

    def send(self, source: Path, path: str) -> None:
        """Store a file, whole or not at all."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, whether or not they are there, and the folders that become empty."""
        for path in paths:
            target = self.folder / path
            target.unlink(missing_ok=True)
            for folder in list(target.parents)[: len(Path(path).parts) - 1]:
                with suppress(OSError):
                    folder.rmdir()


def _code(error: Exception) -> str:
    """Return what the server answered; ``upload_file`` hides that behind an exception of its own."""
    answer = getattr(error if hasattr(error, "response") else error.__context__, "response", {})
    return str(answer.get("Error", {}).get("Code", "")) or _sentence(error)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__

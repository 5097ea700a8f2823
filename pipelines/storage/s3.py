"""S3Remote: a prefix of a bucket on S3 or on a server that speaks its protocol.

The only file that imports boto3. Credentials, region and endpoint come from where boto3 looks for them: the environment
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), ~/.aws, or the machine's role.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from denoise.errors import UserError, first_line
from pipelines.storage.base import TIMEOUT, NotFoundError, Sink, TransientError, refuse_untrusted

CHUNK = 1 << 20
PAGE_SIZE = 1000  # objects in one answer to a request for a list, the most that S3 gives
MISSING = {"404", "NoSuchKey", "NotFound"}
DENIED = {
    "403": "access is denied",
    "AccessDenied": "access is denied",
    "InvalidAccessKeyId": "the access key is not known",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "ExpiredToken": "the session token has expired",
    "NoSuchBucket": "there is no such bucket",
}


class S3Remote:
    """Objects under a prefix of a bucket; a ``WritableRemote``.

    Args:
        address: ``s3://BUCKET/PREFIX``, for messages.
        bucket: the name of the bucket.
        prefix: the prefix without slashes at its ends; it may be empty.
        key: the parameter that holds the address, for messages.
    """

    def __init__(self, address: str, bucket: str, prefix: str, key: str = "data.url") -> None:
        self.address, self.bucket, self.prefix, self.key = address, bucket, prefix, key
        self._local = threading.local()

    def receive(self, path: str, file: Sink, start: int) -> None:
        """Append an object from byte ``start`` on."""
        byte_range = {"Range": f"bytes={start}-"} if start else {}
        with self._translated_errors(path):
            body = self._client().get_object(Bucket=self.bucket, Key=self._key(path), **byte_range)["Body"]
            with body:
                for chunk in body.iter_chunks(CHUNK):
                    file.write(chunk)

    def send(self, source: Path, path: str) -> None:
        """Store an object; S3 shows it whole or not at all, also one that is sent in parts."""
        with self._translated_errors(path):
            self._client().upload_file(str(source), self.bucket, self._key(path))

    def list(self, prefix: str) -> list[str]:
        """Return the paths that begin with a prefix, sorted; TransientError where that may work later."""
        start, paths = len(self._key("")), list[str]()
        with self._translated_errors(f"{prefix}*"):
            paginator = self._client().get_paginator("list_objects_v2")
            pages = paginator.paginate(
                Bucket=self.bucket, Prefix=self._key(prefix), PaginationConfig={"PageSize": PAGE_SIZE}
            )
            for page in pages:
                paths += [entry["Key"][start:] for entry in page.get("Contents", ())]
        return sorted(paths)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects in this order, whether or not they exist; TransientError where that may work later."""
        for path in paths:  # a request each: S3 promises no order within a request for many
            with self._translated_errors(path):
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
                    retries={"total_max_attempts": 1},  # ``with_retries`` tries again, and prints that it does
                    # Servers that only speak S3's protocol do not all know the newer checksums; ours are in the index.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        return self._local.client

    @contextmanager
    def _translated_errors(self, path: str) -> Iterator[None]:
        """Turn boto3's exceptions into ours."""
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions as boto
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise UserError(
                f"{self.address} needs credentials ({first_line(error)}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials."
            ) from None
        except boto.ParamValidationError as error:
            reason = " ".join(str(error).split()).rstrip(".")  # the first of its lines is a mere heading
            raise UserError(f"{self.address} is no address on S3 ({reason}); check {self.key}.") from None
        except (boto.ClientError, S3UploadFailedError) as error:
            code = _error_code(error)
            if code in MISSING:
                raise NotFoundError(f"{self.address}/{path} does not exist.") from None
            if code in DENIED:
                raise UserError(
                    f"{self.address}/{path}: {DENIED[code]}; check {self.key} and the credentials."
                ) from None
            raise TransientError(f"the server answered {code}") from None
        except (boto.BotoCoreError, HTTPError, OSError) as error:
            network = (boto.BotoCoreError, HTTPError, ConnectionError, TimeoutError)  # some of boto's are OSErrors, too
            if not isinstance(error, network):
                raise  # the disk
            refuse_untrusted(self._client().meta.endpoint_url, error, "AWS_CA_BUNDLE")
            raise TransientError(first_line(error)) from None


def _error_code(error: Exception) -> str:
    """Return the server's error code; ``upload_file`` hides it behind an exception of its own."""
    response = getattr(error if hasattr(error, "response") else error.__context__, "response", {})
    return str(response.get("Error", {}).get("Code", "")) or first_line(error)

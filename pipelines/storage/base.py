"""What all transfers share: the interface of a remote, the errors, and the retries."""

import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from denoise.errors import UserError, first_line
from pipelines.console import say

T = TypeVar("T")
PATIENCE = 600.0  # seconds for which an unreachable server is tried again
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds between attempts, doubled each time
TIMEOUT = 20.0  # seconds to connect, and between two packets


class NotFoundError(UserError):
    """The remote can be reached, but has no such file."""


class TooLargeError(UserError):
    """The remote sends more than the file can have."""


class TransientError(Exception):
    """A failed attempt that may succeed when it is repeated."""


class Sink(Protocol):
    """A file to receive into, or what stands for one."""

    def write(self, data: bytes, /) -> int:
        """Append bytes."""
        ...

    def tell(self) -> int:
        """Return the position."""
        ...

    def seek(self, position: int, /) -> int:
        """Go to a position."""
        ...

    def truncate(self) -> int:
        """Cut the file at the position."""
        ...


class Remote(Protocol):
    """Files under one address."""

    address: str

    def receive(self, path: str, file: Sink, start: int) -> None:
        """Append the bytes of a file from ``start`` on, which is the size of what ``file`` already holds of it.

        Raises:
            NotFoundError: there is no such file.
            TransientError: it may work later, from the new end of ``file`` on.
        """
        ...


class WritableRemote(Remote, Protocol):
    """Files under one address that can be written."""

    def send(self, source: Path, path: str) -> None:
        """Store a file, whole or not at all.

        Raises:
            TransientError: it may work later.
        """
        ...


class LimitedFile:
    """A ``Sink`` that does not grow beyond a limit, to receive into: a remote may send without end.

    Args:
        file: where the bytes go.
        limit: how many bytes it may hold.
        address: what is received, for messages.
    """

    def __init__(self, file: Sink, limit: int, address: str) -> None:
        self.file, self.limit, self.address = file, limit, address

    def write(self, data: bytes, /) -> int:
        """Append bytes.

        Raises:
            TooLargeError: there are more than the limit.
        """
        if self.file.tell() + len(data) > self.limit:
            raise TooLargeError(
                f"{self.address} sends more than the {self.limit} bytes that it can have, so it is not what it should "
                "be; check the address."
            )
        return self.file.write(data)

    def tell(self) -> int:
        """Return the position."""
        return self.file.tell()

    def seek(self, position: int, /) -> int:
        """Go to a position."""
        return self.file.seek(position)

    def truncate(self) -> int:
        """Cut the file at the position."""
        return self.file.truncate()


def with_retries(address: str, attempt: Callable[[], T], attempts: int | None = None) -> T:
    """Return what ``attempt`` returns; while it raises a TransientError, call it again after a growing pause.

    Args:
        address: what is transferred, for messages.
        attempt: does the work, or what is left of it.
        attempts: how many there are, without a message. By default it is tried for ten minutes, and every failure is
            printed.

    Raises:
        UserError: it failed for ten minutes.
        TransientError: the last of ``attempts`` failed.
    """
    deadline, pause, failures = time.monotonic() + PATIENCE, FIRST_PAUSE, 0
    while True:
        try:
            return attempt()
        except TransientError as error:
            failures += 1
            if failures == attempts:
                raise
            if attempts is None:
                if time.monotonic() + pause > deadline:
                    raise UserError(
                        f"{address} could not be transferred for {PATIENCE / 60:.0f} minutes ({error}); check the "
                        "server and the network, and run the same command again."
                    ) from None
                say(f"{address}: {error}; trying again in {pause:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def refuse_untrusted(address: str, error: BaseException, variable: str = "REQUESTS_CA_BUNDLE") -> None:
    """Raise a UserError if a transfer failed because of TLS, which no other attempt changes.

    Args:
        address: of the server.
        error: what was raised; the cause is looked for in its arguments and in what it was raised from.
        variable: environment variable that names a file of trusted certificates.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise UserError(
                f"the certificate of {address} is not trusted ({cause.verify_message.rstrip('.')}); check the address, "
                f"or, if the server is yours, set {variable} to a file with its certificate authority's certificate."
            ) from None
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            reason = (cause.reason or first_line(cause)).replace("_", " ").lower()
            raise UserError(f"{address} cannot be reached by TLS ({reason}); check the address and its port.") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, those among its arguments or attributes that libraries wrap, and what it was raised from."""
    while error is not None:
        yield error
        wrapped = (*error.args, getattr(error, "reason", None))
        inner = next((cause for cause in wrapped if isinstance(cause, BaseException)), None)
        error = inner or error.__cause__ or error.__context__


def wrong_checksum(name: str, expected: str, actual: str) -> UserError:
    """Return the error for a fetched file, called ``name``, whose sha256 is not the expected one."""
    return UserError(
        f"{name} has the wrong checksum (expected sha256 {expected}, got {actual}): it is damaged or another version, "
        f"so it was not kept; fetch again or give a good copy with --mirror FOLDER_OR_URL"
    )

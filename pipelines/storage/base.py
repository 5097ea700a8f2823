"""What all transfers share: the interface of a remote, the errors, and the retries."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol, TypeVar

from denoise.errors import UserError
from pipelines.console import say

T = TypeVar("T")
PATIENCE = 600.0  # seconds for which an unreachable server is tried again
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds between attempts, doubled each time
TIMEOUT = 20.0  # seconds to connect, and between two packets


class NotFoundError(UserError):
    """The remote can be reached, but has no such file."""


class TransientError(Exception):
    """A failed attempt that may succeed when it is repeated."""


class Remote(Protocol):
    """Files under one address."""

    address: str

    def receive(self, path: str, file: IO[bytes], start: int) -> None:
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


def wrong_checksum(name: str, expected: str, actual: str) -> UserError:
    """Return the error for a fetched file, called ``name``, whose sha256 is not the expected one."""
    return UserError(
        f"{name} has the wrong checksum (expected sha256 {expected}, got {actual}): it is damaged or another version, "
        f"so it was not kept; fetch again or give a good copy with --mirror FOLDER_OR_URL"
    )

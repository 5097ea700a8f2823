"""Who drives a run: host, process and its creation time, so that a later start can tell whether it still lives."""

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path

CLOCK = 60.0  # seconds by which a process's creation time may seem to move when the clock is set


def this_process() -> str:
    """Return ``HOST PID CREATED`` of this process, CREATED in seconds since the epoch."""
    import psutil

    return f"{this_host()} {os.getpid()} {psutil.Process().create_time():.2f}"


def this_host() -> str:
    """Return a name that only processes share which see each other: of the machine, and of its container if any.

    The host's name alone will not do: machines that share an MLflow server may have the same one.
    """
    parts = []
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return f"{socket.gethostname()}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"


def has_died(driver: str) -> bool:
    """Return whether that process ran on this host and does so no longer; False wherever that cannot be told."""
    try:
        host, pid, created = driver.split()
        return host == this_host() and not _lives(int(pid), float(created))
    except ValueError:
        return False


def _lives(pid: int, created: float) -> bool:
    import psutil

    try:
        os.kill(pid, 0)  # sends nothing; also finds processes of others where /proc hides them
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < CLOCK  # else the number was given to another process
        return same and process.status() != psutil.STATUS_ZOMBIE
    except ProcessLookupError:
        return False
    except (OSError, OverflowError, psutil.Error):
        return True  # it is there, but may not be looked at

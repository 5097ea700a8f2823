"""The process that owns a run: host, process id and creation time, by which others can tell whether it has died."""

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path

CLOCK_TOLERANCE = 60.0  # seconds by which a process's creation time may appear to change when the clock is set


def this_process() -> str:
    """Return ``HOST PID CREATED`` of this process, CREATED in seconds since the epoch."""
    import psutil

    return f"{this_host()} {os.getpid()} {psutil.Process().create_time():.2f}"


def this_host() -> str:
    """Return a name shared only by processes that can see each other: of the machine, and of its container if any.

    The host name is not enough: machines that share an MLflow server may have the same one.
    """
    parts = []
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return f"{socket.gethostname()}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"


def has_died(owner: str) -> bool:
    """Return whether that process ran on this host and has ended; False wherever that is unknown.

    Args:
        owner: what ``this_process`` returned there.
    """
    try:
        host, pid, created = owner.split()
        return host == this_host() and not _is_alive(int(pid), float(created))
    except ValueError:
        return False


def _is_alive(pid: int, created: float) -> bool:
    import psutil

    try:
        os.kill(pid, 0)  # sends no signal; also finds processes of other users where /proc hides them
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - created) < CLOCK_TOLERANCE  # otherwise the process id was reused
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except ProcessLookupError:
        return False
    except (OSError, OverflowError, psutil.Error):
        return True  # it exists, but this user may not inspect it

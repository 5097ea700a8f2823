"""The process that owns a run: host, process id and creation time, by which others can tell whether it has died."""

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path

TOLERANCE = 0.1  # seconds between two readings of one process's creation time since boot
EPOCH = 1e9  # a creation time above it counts from 1970: 0.1.0 wrote that, which changes when the clock is set,
CLOCK_TOLERANCE = 60.0  # by so many seconds at most


def this_process() -> str:
    """Return ``HOST PID CREATED`` of this process, CREATED in seconds since the machine was started."""
    return f"{this_host()} {os.getpid()} {_seconds_since_boot(os.getpid()):.2f}"


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
        if created > EPOCH:
            is_same = abs(process.create_time() - created) < CLOCK_TOLERANCE
        else:
            is_same = abs(_seconds_since_boot(pid) - created) < TOLERANCE
        return is_same and process.status() != psutil.STATUS_ZOMBIE  # not the same: the process id was reused
    except ProcessLookupError:
        return False
    except (OSError, OverflowError, psutil.Error):
        return True  # it exists, but this user may not inspect it


def _seconds_since_boot(pid: int) -> float:
    """Return when a process was created; whoever sets the clock does not change it, and psutil shows it to none."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime of proc_pid_stat(5)

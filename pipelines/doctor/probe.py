"""What is looked at on each host of a cluster, by a process that Ray starts there."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from io import BytesIO
from pathlib import Path

from denoise.errors import UserError
from pipelines.storage.base import HttpRemote, LocalRemote, NotFoundError, S3Remote, TransientError, remote
from pipelines.tracking import client as tracking

PACKAGES = ("noise2x", "ray", "torch", "mlflow", "optuna")
COUNT = "import torch; print(torch.cuda.device_count())"
KEY = "ray.storage"
FOLDER = "cluster-check"  # below ray.storage, for files that are there for a moment


class Probe:
    """Answers for one host. What is wrong there is a sentence, None where nothing is."""

    def now(self) -> float:
        """Return the time of this host's clock, in seconds since the epoch."""
        return time.time()

    def versions(self) -> dict[str, str]:
        """Return the versions of Python and of the packages that have to fit each other."""
        return versions()

    def storage(self, url: str, left: str | None) -> str | None:
        """Write a file to ray.storage, read it back and delete it; ``left`` is one that the driver wrote there."""
        return round_trip(url, left)

    def data(self, place: str, paths: Sequence[str]) -> str | None:
        """Read the index of each training set."""
        return _sentence(place, "data.url", lambda: _read_all(place, paths))

    def mlflow(self, uri: str) -> str | None:
        """Ask MLflow something."""
        return _sentence(tracking.without_password(uri), "tracking.uri", lambda: tracking.ask(uri))

    def gpus(self) -> int:
        """Return how many GPUs torch sees in what Ray gives them to: Ray hides them from who asked for none."""
        import psutil

        # The parent is Ray's own process, whose environment says which GPUs it was started with.
        theirs = psutil.Process(os.getppid()).environ()
        done = subprocess.run([sys.executable, "-c", COUNT], env=theirs, capture_output=True, text=True, check=True)
        return int(done.stdout)


def versions() -> dict[str, str]:
    """Return the versions here; a local part such as +cu130 is left out, as a head without a GPU may lack it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def round_trip(url: str, left: str | None = None) -> str | None:
    """Write a file to ray.storage, read it back and delete it; say what is wrong, None where nothing is.

    Args:
        url: ray.storage, absolute.
        left: a file that another host has written there with ``leave``.
    """
    return _sentence(url, KEY, lambda: _round_trip(url, left))


def leave(url: str, name: str) -> str | None:
    """Write a file that other hosts are to find; say what is wrong, None where nothing is."""

    def write() -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(name.encode())
            file.flush()
            _storage(url).send(Path(file.name), f"{FOLDER}/{name}")

    return _sentence(url, KEY, write)


def clear(url: str, name: str) -> None:
    """Delete what ``leave`` wrote, whether or not it is there."""
    _sentence(url, KEY, lambda: _storage(url).delete([f"{FOLDER}/{name}"]))


def _round_trip(url: str, left: str | None) -> None:
    place, name = _storage(url), f"{platform.node()}-{os.getpid()}"
    path, file = f"{FOLDER}/{name}", BytesIO()
    if reason := leave(url, name):
        raise UserError(reason)
    place.receive(path, file, 0)
    if file.getvalue() != name.encode():
        raise UserError(f"{place.address} gave back other bytes than were written to it; check what serves it")
    place.delete([path])
    if left is None:
        return
    try:
        place.receive(f"{FOLDER}/{left}", BytesIO(), 0)
    except NotFoundError:
        raise UserError(
            f"{place.address} is a folder of that host's own; set ray.storage to a folder that all hosts share, or to "
            "s3://BUCKET/PREFIX"
        ) from None


def _storage(url: str) -> "LocalRemote | S3Remote":
    place = remote(url, KEY)
    if isinstance(place, HttpRemote):
        raise UserError(f"ray.storage={url} is not understood; write s3://BUCKET/PREFIX or a folder")
    return place


def _read_all(place: str, paths: Sequence[str]) -> None:
    where = remote(place)
    for path in paths:
        where.receive(path, BytesIO(), 0)


def _sentence(where: str, key: str, attempt: Callable[[], object]) -> str | None:
    """Return what is wrong at the address that a key names, without the full stop; None where the attempt succeeds."""
    try:
        attempt()
    except UserError as error:
        return str(error).rstrip(".")
    except TransientError as error:
        return f"{where} does not answer ({error}); check {key} and the network"
    except OSError as error:
        return f"{where} cannot be used ({error.strerror}: {error.filename}); check {key}, and who may write there"
    return None

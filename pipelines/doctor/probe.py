"""Checks that run on every host of a cluster, in a Ray actor there."""

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
from denoise.redaction import without_passwords
from pipelines.storage.base import NotFoundError, TransientError
from pipelines.storage.folder import LocalRemote
from pipelines.storage.http import HttpRemote
from pipelines.storage.remote import remote
from pipelines.storage.s3 import S3Remote
from pipelines.tracking import client as tracking

PACKAGES = ("noise2x", "ray", "torch", "mlflow", "optuna")
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
STORAGE_KEY = "ray.storage"
FOLDER = "cluster-check"  # below ray.storage, for files that exist during the check only


class Probe:
    """The checks of one host. Those of services return an error message, or None if all is well."""

    def now(self) -> float:
        """Return the time of this host's clock, in seconds since the epoch."""
        return time.time()

    def versions(self) -> dict[str, str]:
        """Return the versions of Python and of the packages that must be the same on all hosts."""
        return versions()

    def storage(self, url: str, marker: str | None) -> str | None:
        """Write, read and delete a file in ray.storage, and read the marker file that the driver wrote there."""
        return check_storage(url, marker)

    def data(self, place: str, paths: Sequence[str]) -> str | None:
        """Read the index of each training set."""
        return _error_message(place, "data.url", lambda: _read_all(place, paths))

    def mlflow(self, uri: str) -> str | None:
        """Query MLflow."""
        return _error_message(without_passwords(uri), "tracking.uri", lambda: tracking.check_access(uri))

    def gpus(self) -> int:
        """Return how many GPUs torch sees in the environment of Ray's own process; Ray hides them from this actor."""
        import psutil

        # The parent is Ray's own process; its environment has the GPUs that it was started with.
        environment = psutil.Process(os.getppid()).environ()
        done = subprocess.run(
            [sys.executable, "-c", COUNT_GPUS], env=environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout)


def versions() -> dict[str, str]:
    """Return the versions here, without local parts such as +cu130, which a head without a GPU may lack."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            installed[name] = "none"
    return installed


def check_storage(url: str, marker: str | None = None) -> str | None:
    """Write, read and delete a file in ray.storage; return an error message, or None if that works.

    Args:
        url: ray.storage, absolute.
        marker: name of a file that another host wrote with ``write_marker``; it must be there.
    """
    return _error_message(url, STORAGE_KEY, lambda: _check_storage(url, marker))


def write_marker(url: str, name: str) -> str | None:
    """Write a file that the other hosts must be able to read; return an error message, or None if that works."""

    def write() -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(name.encode())
            file.flush()
            _storage(url).send(Path(file.name), f"{FOLDER}/{name}")

    return _error_message(url, STORAGE_KEY, write)


def delete_marker(url: str, name: str) -> None:
    """Delete the file of ``write_marker``, if it exists."""
    _error_message(url, STORAGE_KEY, lambda: _storage(url).delete([f"{FOLDER}/{name}"]))


def _check_storage(url: str, marker: str | None) -> None:
    target, name = _storage(url), f"{platform.node()}-{os.getpid()}"
    path, file = f"{FOLDER}/{name}", BytesIO()
    if reason := write_marker(url, name):
        raise UserError(reason)
    target.receive(path, file, 0)
    if file.getvalue() != name.encode():
        raise UserError(f"{target.address} returned other bytes than were written; check the service behind it")
    target.delete([path])
    if marker is None:
        return
    try:
        target.receive(f"{FOLDER}/{marker}", BytesIO(), 0)
    except NotFoundError:
        raise UserError(
            f"{target.address} is another folder there than on the driver's host; set ray.storage to a folder that all "
            "hosts share, or to s3://BUCKET/PREFIX"
        ) from None


def _storage(url: str) -> "LocalRemote | S3Remote":
    target = remote(url, STORAGE_KEY)
    if isinstance(target, HttpRemote):
        raise UserError(f"ray.storage={url} is not understood; write s3://BUCKET/PREFIX or a folder")
    return target


def _read_all(place: str, paths: Sequence[str]) -> None:
    source = remote(place)
    for path in paths:
        source.receive(path, BytesIO(), 0)


def _error_message(address: str, key: str, attempt: Callable[[], object]) -> str | None:
    """Return the error of an attempt at the address in a parameter, without the full stop; None if it succeeds."""
    try:
        attempt()
    except UserError as error:
        return str(error).rstrip(".")
    except TransientError as error:
        return f"{address} does not answer ({error}); check {key} and the network"
    except OSError as error:
        return f"{address} cannot be used ({error.strerror}: {error.filename}); check {key}, and the permissions there"
    return None

"""Checkpoints of a run on S3, or in a folder if ray.storage is one.

S3 has no folders that appear in one rename. Here the manifest makes a checkpoint: it is sent last and deleted first, so
that a process may be killed at any moment and leaves whole checkpoints, and files that no list contains.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from denoise.errors import UserError
from denoise.files import remove, require_name, write_folder
from denoise.training.checkpoint import FILES, MANIFEST
from denoise.training.checkpoint_manager import NAME, CheckpointStore, FolderStore
from pipelines.storage.base import NotFoundError, with_retries
from pipelines.storage.remote import bucket_at
from pipelines.storage.s3 import S3Remote

KEY = "ray.storage"
NAME_PREFIX = "step-"  # of the names of checkpoints; anything else there is not ours to delete


class S3Store:
    """Checkpoints under ``s3://BUCKET/PREFIX/NAME/checkpoints``; a ``CheckpointStore``.

    They pass through a temporary folder (TMPDIR), which needs room for one.
    """

    def __init__(self, remote: S3Remote) -> None:
        self.remote = remote

    def names(self) -> list[str]:
        """Return the names that have a manifest, oldest first."""
        return _names_with_manifest(self._paths(NAME_PREFIX))

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Send a folder, its manifest last; an older one of that name is deleted first.

        Raises:
            UserError: the disk is full, S3 denies access, or it could not be reached for ten minutes.
        """
        with _temporary_folder(name) as folder:
            write_folder(folder, write)
            self.delete(name)
            for source in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
                self._send(source, f"{name}/{source.name}")

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Hand out a temporary folder with the files that exist; without a manifest it stays empty.

        Raises:
            UserError: the disk is full, S3 denies access, or it could not be reached for ten minutes.
        """
        with _temporary_folder(name) as folder:
            write_folder(folder, lambda work: self._receive_all(name, work))
            yield folder

    def delete(self, name: str) -> None:
        """Delete the manifest, which removes the name from the list, and then the rest."""
        self._delete(sorted(self._paths(f"{name}/"), key=lambda path: path != f"{name}/{MANIFEST}"))

    def clean(self) -> None:
        """Delete the files of names without a manifest, left by a killed process."""
        paths = self._paths(NAME_PREFIX)
        complete = _names_with_manifest(paths)
        names = ((path, path.partition("/")[0]) for path in paths)
        self._delete([path for path, name in names if NAME.fullmatch(name) and name not in complete])

    def _receive_all(self, name: str, work: Path) -> None:
        if self._receive(f"{name}/{MANIFEST}", work / MANIFEST):
            for path in self._paths(f"{name}/"):
                file = path.removeprefix(f"{name}/")
                if file in FILES:  # and not "", which S3 consoles make of a folder
                    self._receive(path, work / file)

    def _receive(self, path: str, target: Path) -> bool:
        """Download a file; return whether it exists."""

        def attempt() -> None:
            with target.open("wb") as file:
                self.remote.receive(path, file, 0)

        try:
            with_retries(self._address(path), attempt)
        except NotFoundError:  # deleted since it was listed: ``damage`` will report it
            remove(target, target.parent)
            return False
        return True

    def _send(self, source: Path, path: str) -> None:
        with_retries(self._address(path), lambda: self.remote.send(source, path))

    def _paths(self, prefix: str) -> list[str]:
        return with_retries(self._address(f"{prefix}*"), lambda: self.remote.list(prefix))

    def _delete(self, paths: list[str]) -> None:
        with_retries(self.remote.address, lambda: self.remote.delete(paths))

    def _address(self, path: str) -> str:
        return f"{self.remote.address}/{path}"


def open_store(storage: str, name: str) -> CheckpointStore:
    """Return the store of a run's checkpoints.

    Args:
        storage: ray.storage, a folder or ``s3://BUCKET/PREFIX``.
        name: the run's name.

    Raises:
        UserError: another kind of address, or a name that leads out of it.
    """
    require_name(name, "the name of the run")
    if storage.startswith("s3:"):
        return S3Store(bucket_at(f"{bucket_at(storage, KEY).address}/{name}/checkpoints", KEY))
    if "://" in storage:
        raise UserError(f"{KEY}={storage} is not understood; write s3://BUCKET/PREFIX or a folder.")
    return FolderStore(Path(storage).absolute() / name / "checkpoints")


def absolute(storage: str) -> str:
    """Return ray.storage as workers need it, whose current folder is another one."""
    return storage if "://" in storage else str(Path(storage).absolute())


def _names_with_manifest(paths: list[str]) -> list[str]:
    """Return the names of checkpoints among the paths NAME/FILE that have a manifest."""
    names = (path.partition("/")[0] for path in paths if path.partition("/")[2] == MANIFEST)
    return sorted(name for name in names if NAME.fullmatch(name))


@contextmanager
def _temporary_folder(name: str) -> Iterator[Path]:
    """Hand out the path of a folder that may be made, and is deleted when the block ends."""
    with tempfile.TemporaryDirectory(prefix="denoise-checkpoint-") as parent:
        yield Path(parent) / name

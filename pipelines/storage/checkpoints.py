"""The checkpoints of a run on S3, or in a folder where that is what ray.storage names.

S3 has no folders that appear in one rename. Here the manifest makes a checkpoint: it comes last and goes first, so that
a process may be killed at any moment and leaves whole checkpoints and files that nobody lists.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from denoise.errors import UserError
from denoise.files import write_folder
from denoise.training.checkpoint import MANIFEST
from denoise.training.checkpoint_manager import CheckpointStore, FolderStore
from pipelines.storage.base import NotFoundError, S3Remote, bucket_at, with_retries

KEY = "ray.storage"
OURS = "step-"  # what the names of checkpoints begin with; anything else there is not ours to delete


class S3Store:
    """Checkpoints under ``s3://BUCKET/PREFIX/NAME/checkpoints``; a ``CheckpointStore``.

    They pass through a temporary folder (TMPDIR), which has to have room for one.
    """

    def __init__(self, place: S3Remote) -> None:
        self.place = place

    def names(self) -> list[str]:
        """Return the names that have a manifest, oldest first."""
        return _whole(self._paths(OURS))

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Send a folder, its manifest last; an older one of that name is deleted first.

        Raises:
            UserError: the disk is full, S3 refuses, or it could not be reached for ten minutes.
        """
        with _temporary(name) as folder:
            write_folder(folder, write)
            self.delete(name)
            for source in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
                self._send(source, f"{name}/{source.name}")

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Return a temporary folder with the files that are there; one without a manifest stays empty.

        Raises:
            UserError: the disk is full, S3 refuses, or it could not be reached for ten minutes.
        """
        with _temporary(name) as folder:
            write_folder(folder, lambda work: self._receive_all(name, work))
            yield folder

    def delete(self, name: str) -> None:
        """Delete the manifest, with which the name goes, and then the rest."""
        self._delete(sorted(self._paths(f"{name}/"), key=lambda path: path != f"{name}/{MANIFEST}"))

    def clean(self) -> None:
        """Delete the files of names without a manifest, which a killed process has left."""
        paths = self._paths(OURS)
        whole = _whole(paths)
        self._delete([path for path in paths if path.partition("/")[0] not in whole])

    def _receive_all(self, name: str, work: Path) -> None:
        if self._receive(f"{name}/{MANIFEST}", work / MANIFEST):
            for path in self._paths(f"{name}/"):
                file = path.removeprefix(f"{name}/")
                if file not in ("", MANIFEST) and "/" not in file:  # "": what S3 consoles make of a folder
                    self._receive(path, work / file)

    def _receive(self, path: str, target: Path) -> bool:
        """Bring a file; say whether it was there."""

        def attempt() -> None:
            with target.open("wb") as file:
                self.place.receive(path, file, 0)

        try:
            with_retries(self._address(path), attempt)
        except NotFoundError:  # it has vanished since it was listed: ``damage`` will say so
            target.unlink()
            return False
        return True

    def _send(self, source: Path, path: str) -> None:
        with_retries(self._address(path), lambda: self.place.send(source, path))

    def _paths(self, prefix: str) -> list[str]:
        return with_retries(self._address(f"{prefix}*"), lambda: self.place.list(prefix))

    def _delete(self, paths: list[str]) -> None:
        with_retries(self.place.address, lambda: self.place.delete(paths))

    def _address(self, path: str) -> str:
        return f"{self.place.address}/{path}"


def open_store(storage: str, name: str) -> CheckpointStore:
    """Return the checkpoints of a run.

    Args:
        storage: ray.storage, a folder or ``s3://BUCKET/PREFIX``.
        name: of the run.

    Raises:
        UserError: another kind of address.
    """
    if storage.startswith("s3:"):
        return S3Store(bucket_at(f"{bucket_at(storage, KEY).address}/{name}/checkpoints", KEY))
    if "://" in storage:
        raise UserError(f"{KEY}={storage} is not understood; write s3://BUCKET/PREFIX or a folder.")
    return FolderStore(Path(storage).absolute() / name / "checkpoints")


def absolute(storage: str) -> str:
    """Return the storage as workers find it, whose current folder is another."""
    return storage if "://" in storage else str(Path(storage).absolute())


def _whole(paths: list[str]) -> list[str]:
    """Return the names among the paths NAME/FILE that have a manifest."""
    return sorted(path.partition("/")[0] for path in paths if path.partition("/")[2] == MANIFEST)


@contextmanager
def _temporary(name: str) -> Iterator[Path]:
    """Return a folder that may be made, and is removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="denoise-checkpoint-") as parent:
        yield Path(parent) / name

"""LocalRemote: a folder as a remote, for example on a network disk."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from denoise.files import atomic_file, remove
from pipelines.storage.base import NotFoundError, Sink

CHUNK = 1 << 20


class LocalRemote:
    """Files below a folder; a ``WritableRemote``.

    Args:
        address: how the user has written it, for messages.
        folder: its path.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address.rstrip("/"), folder

    def receive(self, path: str, file: Sink, start: int) -> None:
        """Append a file from byte ``start`` on."""
        if not (self.folder / path).is_file():
            raise NotFoundError(f"{self.address}/{path} does not exist.")
        with (self.folder / path).open("rb") as source:
            source.seek(start)
            shutil.copyfileobj(source, file, CHUNK)

    def send(self, source: Path, path: str) -> None:
        """Store a file, whole or not at all."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target, target.with_name(f".{target.name}.part")) as work:
            shutil.copyfile(source, work)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, whether or not they exist, and the folders that become empty."""
        for path in paths:
            target = self.folder / path
            remove(target, self.folder)
            for parent in list(target.parents)[: len(Path(path).parts) - 1]:
                with suppress(OSError):
                    parent.rmdir()

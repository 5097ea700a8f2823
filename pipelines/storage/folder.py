"""LocalRemote: a folder as a remote, for example on a network disk."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from denoise.files import atomic_file
from pipelines.storage.base import NotFoundError

CHUNK = 1 << 20


class LocalRemote:
    """Files below a folder; a ``WritableRemote``.

    Args:
        address: how the user has written it, for messages.
        folder: its path.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address.rstrip("/"), folder

    def receive(self, path: str, file: IO[bytes], start: int) -> None:
        """Append a file from byte ``start`` on."""
        try:
            with (self.folder / path).open("rb") as source:
                source.seek(start)
                shutil.copyfileobj(source, file, CHUNK)
        except FileNotFoundError:
            raise NotFoundError(f"{self.address}/{path} does not exist.") from None

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
            target.unlink(missing_ok=True)
            for parent in list(target.parents)[: len(Path(path).parts) - 1]:
                with suppress(OSError):
                    parent.rmdir()

"""ResultCache: what follows from data alone and takes long to find, in files that are found by the data's digests."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from denoise.errors import UserError
from denoise.files import write_bytes


@dataclass(frozen=True)
class ResultCache:
    """A folder of results, which many processes may use and anybody may delete.

    A file holds the sha256 of its key and content before the content: one that is damaged, or was put under another
    key's name, is no result.
    """

    folder: Path

    def get(self, key: str) -> bytes | None:
        """Return the result with this key, None if there is none."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        seal, result = data[:32], data[32:]
        return result if seal == _seal(key, result) else None

    def put(self, key: str, result: bytes) -> None:
        """Keep a result; do nothing where the folder cannot be written to, since it can be found again."""
        with suppress(UserError):
            write_bytes(self._path(key), _seal(key, result) + result)

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()


def _seal(key: str, result: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key.encode()).digest() + result).digest()

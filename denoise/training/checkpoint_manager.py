"""The checkpoints of one run: written off the training thread, found again newest first, and the old ones deleted.

A store keeps folders by name, each whole or absent. ``FolderStore`` is a folder on this machine or a shared disk; the
shell has one for S3.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from denoise import distributed
from denoise.files import write_folder
from denoise.training.checkpoint import Snapshot, checkpoint_name, damage

SCORE = "val_psnr"  # what the best checkpoint has the most of

Write = Callable[[Path], None]


class CheckpointStore(Protocol):
    """Checkpoint folders by name; a name is listed only while all of its folder is there."""

    def names(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""
        ...

    def put(self, name: str, write: Write) -> None:
        """Let ``write`` fill an empty local folder and keep that under a name, in the place of an older one."""
        ...

    def open(self, name: str) -> AbstractContextManager[Path]:
        """Return a local folder with what is kept under a name, for as long as the block runs."""
        ...

    def delete(self, name: str) -> None:
        """Forget a name; nothing happens where there is none."""
        ...

    def clean(self) -> None:
        """Remove what a process that was killed has left half-written."""
        ...


class FolderStore:
    """CheckpointManager in a folder that every rank can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return the names of the checkpoints, oldest first."""
        return sorted(path.name for path in self.folder.glob("step-*"))

    def put(self, name: str, write: Write) -> None:
        """Put a folder in place in one rename.

        Raises:
            UserError: the disk is full or the place may not be written; what was there stays.
        """
        write_folder(self.folder / name, write)

    def open(self, name: str) -> AbstractContextManager[Path]:
        """Return the folder itself."""
        return nullcontext(self.folder / name)

    def delete(self, name: str) -> None:
        """Delete a checkpoint; while that goes on its name is no longer listed."""
        going = self.folder / f".{name}.going"
        if (self.folder / name).exists():
            (self.folder / name).rename(going)
        shutil.rmtree(going, ignore_errors=True)

    def clean(self) -> None:
        """Remove what a process that was killed has left half-written or half-deleted."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


class CheckpointManager:
    """What a run does with its checkpoints; every rank has one, rank 0's writes.

    Args:
        store: where they are kept.
        keep: how many of the newest to keep; the best one, by validation PSNR, is kept beside them.
        tell: told in one sentence where training goes on, and about damaged ones.
        tamper: stands between a checkpoint and its writing, to break one on purpose.
    """

    def __init__(
        self,
        store: CheckpointStore,
        keep: int = 2,
        tell: Callable[[str], None] = lambda sentence: None,
        tamper: Callable[[int, Write], Write] = lambda step, write: write,
    ) -> None:
        self.store, self.keep, self.tell, self.wrap_writer = store, keep, tell, tamper
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    @contextmanager
    def newest(self) -> Iterator[Path | None]:
        """Return the folder of the newest sound checkpoint, the same on every rank, or None.

        Older ones are tried in turn where newer ones are damaged; one sentence says so.
        """
        name = distributed.from_first(self._newest_name)
        if name is None:
            yield None
            return
        with self.store.open(name) as folder:
            yield folder

    def save(self, snapshot: Snapshot, step: int, history: Iterable[Mapping[str, Any]]) -> None:
        """Write a checkpoint in the background, once the one before it is written, and then delete older ones.

        Raises:
            UserError: the one before it could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, snapshot, step, tuple(history))

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            UserError: a checkpoint could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, snapshot: Snapshot, step: int, history: Iterable[Mapping[str, Any]]) -> None:
        name = checkpoint_name(step)
        self.store.put(name, self.wrap_writer(step, snapshot.write))
        names = self.store.names()
        done = [one for one in names if one <= name]  # newer ones were damaged, or this one would not have come
        kept = {*done[-self.keep :], best_name(done, history)}
        for old in names:
            if old not in kept:
                self.store.delete(old)

    def _newest_name(self) -> str | None:
        self.store.clean()
        problems = []
        for name in reversed(self.store.names()):
            with self.store.open(name) as folder:
                problem = damage(folder)
            if not problem:
                break
            problems.append(f"{name} is damaged ({problem})")
        else:
            name = None
        resuming = f"going on from {name or 'the beginning'}"
        if problems:
            self.tell(f"warning: checkpoint {', '.join(problems)}; {resuming}")
        elif name:
            self.tell(resuming)
        return name


def best_name(names: Sequence[str], history: Iterable[Mapping[str, Any]]) -> str:
    """Return the checkpoint with the highest validation PSNR, the first of equals; the last where none was scored."""
    scores = {checkpoint_name(int(row["step"])): row[SCORE] for row in history if SCORE in row}
    return max((name for name in names if name in scores), key=lambda name: scores[name], default=names[-1])

"""The checkpoints of one run: written in the background, read newest first, the old ones deleted.

A ``CheckpointStore`` holds folders by name, each complete or absent. ``FolderStore`` is a folder on this machine or a
shared disk; the shell has a store on S3.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from denoise import distributed
from denoise.files import remove, write_folder
from denoise.training.checkpoint import Snapshot, checkpoint_name, damage
from denoise.training.fault_injection import NO_FAULTS, FaultInjector

NAME = re.compile(r"step-[0-9]{8,12}")  # what ``checkpoint_name`` returns; anything else is not ours to delete
SCORE = "val_psnr"  # the metric that decides which checkpoint is best: the higher the better

Write = Callable[[Path], None]


class CheckpointStore(Protocol):
    """Checkpoint folders by name; only complete ones are listed."""

    def names(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""
        ...

    def put(self, name: str, write: Write) -> None:
        """Let ``write`` fill an empty local folder and store that under a name, replacing an older one."""
        ...

    def open(self, name: str) -> AbstractContextManager[Path]:
        """Return a local folder with the checkpoint of that name, valid while the block runs."""
        ...

    def delete(self, name: str) -> None:
        """Delete a checkpoint; do nothing if there is none of that name."""
        ...

    def clean(self) -> None:
        """Remove the incomplete checkpoints of processes that were killed."""
        ...


class FolderStore:
    """Checkpoints in a folder that every rank can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return the names of the checkpoints, oldest first."""
        return sorted(path.name for path in self.folder.glob("step-*") if NAME.fullmatch(path.name))

    def put(self, name: str, write: Write) -> None:
        """Write the folder under a temporary name and rename it.

        Raises:
            UserError: the disk is full or the folder is not writable; an older checkpoint of that name stays.
        """
        write_folder(self.folder / name, write)

    def open(self, name: str) -> AbstractContextManager[Path]:
        """Return the folder itself."""
        return nullcontext(self.folder / name)

    def delete(self, name: str) -> None:
        """Delete a checkpoint, which is no longer listed from the first moment on."""
        hidden = self.folder / f".{name}.going"
        if (self.folder / name).exists():
            (self.folder / name).rename(hidden)
        remove(hidden, self.folder)

    def clean(self) -> None:
        """Remove what killed processes have left half-written or half-deleted."""
        for path in self.folder.glob(".step-*.*"):
            if NAME.fullmatch(path.name[1:].partition(".")[0]):
                remove(path, self.folder)


class CheckpointManager:
    """Saves, finds and deletes the checkpoints of a run; every rank has a manager, only rank 0 saves.

    Args:
        store: where the checkpoints are.
        keep: how many of the newest to keep; the best one, by validation PSNR, is kept as well.
        on_message: called with one sentence about the checkpoint to resume from and damaged ones.
        faults: injected faults of writing.
    """

    def __init__(
        self,
        store: CheckpointStore,
        keep: int = 2,
        on_message: Callable[[str], None] = lambda message: None,
        faults: FaultInjector = NO_FAULTS,
    ) -> None:
        self.store, self.keep, self.on_message, self.faults = store, keep, on_message, faults
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    @contextmanager
    def newest(self) -> Iterator[Path | None]:
        """Yield the folder of the newest intact checkpoint, the same on every rank, or None if there is none.

        Damaged checkpoints are skipped and named in the message.
        """
        name = distributed.from_rank_zero(self._newest_name)
        if name is None:
            yield None
            return
        with self.store.open(name) as folder:
            yield folder

    def save(self, snapshot: Snapshot, step: int, history: Iterable[Mapping[str, Any]]) -> None:
        """Write a checkpoint in the background, after the previous one, and then delete older ones.

        Args:
            snapshot: what to write.
            step: the number of steps done.
            history: the metrics so far, which say which checkpoint is the best.

        Raises:
            UserError: the previous checkpoint could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, snapshot, step, tuple(history))

    def wait(self) -> None:
        """Wait until no checkpoint is being written.

        Raises:
            UserError: a checkpoint could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, snapshot: Snapshot, step: int, history: Iterable[Mapping[str, Any]]) -> None:
        name = checkpoint_name(step)
        self.store.put(name, self.faults.wrap_writer(step, snapshot.write))
        all_names = self.store.names()
        intact = [other for other in all_names if other <= name]  # the run resumed before later ones: they are damaged
        keep = {*intact[-self.keep :], best_name(intact, history)}
        for other in all_names:
            if other not in keep:
                self.store.delete(other)

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
        resuming = f"resuming from {name or 'the beginning'}"
        if problems:
            self.on_message(f"warning: checkpoint {', '.join(problems)}; {resuming}")
        elif name:
            self.on_message(resuming)
        return name


def best_name(names: Sequence[str], history: Iterable[Mapping[str, Any]]) -> str:
    """Return the checkpoint with the highest validation PSNR, the first of equals; the last if none has a score."""
    scores = {
        checkpoint_name(int(row["step"])): row[SCORE] for row in history if math.isfinite(row.get(SCORE, math.nan))
    }
    return max((name for name in names if name in scores), key=lambda name: scores[name], default=names[-1])

"""The journal of a run: all that it logs, on the local disk first, so that no outage of MLflow loses any of it."""

import errno
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter

from denoise.documents import LARGEST_INT, parse_json
from denoise.errors import UserError, first_line
from denoise.files import atomic_file, exclusive_lock, remove, write_folder, write_json
from denoise.model_files import model_files
from pipelines.tracking.client import Status
from pipelines.tracking.database import moved_uri
from pipelines.tracking.runs import RunSpec

if TYPE_CHECKING:
    import io

    import numpy as np


# Names on disk. Images are in "pictures", as journals that already exist have them there and are still read.
RUN, METRICS, IMAGES, STATUS, MODEL = "run.json", "metrics.jsonl", "pictures", "status.json", "model"
FOLDER = "folder"  # key of run.json: where the journal was when that was written
KEY_PATTERN = re.compile(r"[a-zA-Z0-9_\-. /]{1,250}")  # what MLflow takes as the name of a metric or image
IMAGE_NAME = re.compile(
    r"(.+)\+step\+(-?[0-9]{1,18})\+timestamp\+([0-9]{1,18})(\.\w+)?"
)  # file name: key, step, timestamp, suffix


class Point(NamedTuple):
    """The value of a metric at a step."""

    key: str
    value: float
    timestamp: int  # milliseconds since the epoch
    step: int


class LoggedImage(NamedTuple):
    """An image in the journal, one file each."""

    key: str
    step: int
    timestamp: int
    file: Path  # an image format, or .npy


class FinalStatus(NamedTuple):
    """The status with which a run ended, and its end time."""

    status: Status
    time: int  # milliseconds since the epoch


_SPEC = TypeAdapter(RunSpec)
_FINAL = TypeAdapter(tuple[Status, Annotated[int, Field(ge=0, le=LARGEST_INT)]])
_METRICS = TypeAdapter(dict[str, float | None])


class Journal:
    """A folder of plain files with all that MLflow is to hold of a run.

    run.json defines the MLflow run, a line of metrics.jsonl is one call of ``append_metrics``, ``pictures/`` holds the
    images, status.json the final status, and ``model/`` exists until MLflow has the model. A kill loses nothing
    that was appended, since every append is one write or one rename. A later attempt of the run appends to the same
    folder; where it repeats a step, both values stay in the file and the first one counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: io.FileIO | None = None
        self._lock = threading.Lock()  # training and the thread of MlflowLogger both append metrics

    def start_attempt(self, spec: RunSpec) -> RunSpec:
        """Write the run's definition and clear its final status; return it with the first attempt's start time."""
        spec = self.write_spec(spec)
        remove(self.folder / STATUS, self.folder)
        return spec

    def write_spec(self, spec: RunSpec) -> RunSpec:
        """Write the run's definition, replacing any earlier one; return it with the first attempt's start time."""
        with suppress(UserError):  # there is none yet, or it is damaged
            earlier = self.run_spec()
            spec = replace(spec, started=earlier.started or spec.started)
        write_json(self.folder / RUN, spec.as_dict() | {FOLDER: str(self.folder.resolve())})
        return spec

    def run_spec(self) -> RunSpec:
        """Return the run's definition; after a move, or in a copy, with the database that has the same place beside it.

        Raises:
            UserError: the folder is no journal.
        """
        try:
            tree = parse_json((self.folder / RUN).read_bytes())
            folder = tree.pop(FOLDER, None)
            spec = _SPEC.validate_python(vars(RunSpec.from_dict(tree)))
            return replace(spec, uri=moved_uri(spec.uri, folder and Path(folder), self.folder.resolve()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{self.folder} is no journal of a run: it has no {RUN} that can be read; start the run again."
            ) from None

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step; NaN and infinities are allowed.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        for key in metrics:
            _check_key(key)
        values = {key: float(value) for key, value in metrics.items()}
        line = json.dumps({"step": step, "time": _now(), "metrics": values})
        with self._lock:
            self._append(line.encode() + b"\n")

    def append_image(self, key: str, image: "Path | np.ndarray[Any, Any]", step: int) -> None:
        """Append an image: a copy of a file, or an array.

        Raises:
            OSError: the disk is full, the folder is not writable, or the file cannot be read.
        """
        import numpy as np

        _check_key(key)
        suffix = image.suffix if isinstance(image, Path) else ".npy"
        file = self.folder / IMAGES / f"{key.replace('/', '~')}+step+{step}+timestamp+{_now()}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as partial:
            if isinstance(image, Path):
                shutil.copyfile(image, partial)
            else:
                with partial.open("wb") as stream:
                    np.save(stream, image, allow_pickle=False)

    def set_status(self, status: "Status") -> None:
        """Write the final status, with the time."""
        write_json(self.folder / STATUS, {"status": status, "time": _now()})

    def final_status(self) -> FinalStatus | None:
        """Return the final status, None while there is none."""
        try:
            tree = parse_json((self.folder / STATUS).read_bytes())
            return FinalStatus(*_FINAL.validate_python((tree["status"], tree["time"]), strict=True))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def set_model(self, model_folder: Path, metrics: Mapping[str, float], example: "np.ndarray[Any, Any]") -> None:
        """Copy the run's model, for when MLflow answers: the model folder may hold another model by then.

        Args:
            model_folder: holds model.json and net.safetensors.
            metrics: of the model, logged with it.
            example: noisy batch (B, C, H, W), float32 in [0, 1].
        """
        import numpy as np

        def write(work: Path) -> None:
            for file in model_files(model_folder):
                shutil.copyfile(file, work / file.name)
            write_json(work / "figures.json", dict(metrics))
            np.save(work / "example.npy", example, allow_pickle=False)

        write_folder(self.folder / MODEL, write)

    def pending_model(self) -> "tuple[Path, dict[str, float], np.ndarray[Any, Any]] | None":
        """Return (model folder, metrics, example) of a model that MLflow does not have yet, None if there is none.

        Raises:
            UserError: the copy of the model is damaged.
        """
        import numpy as np

        folder = self.folder / MODEL
        if not folder.is_dir():
            return None
        try:
            values = _METRICS.validate_python(parse_json((folder / "figures.json").read_bytes()))
            example = np.load(folder / "example.npy", allow_pickle=False)
        except (OSError, EOFError, MemoryError, ValueError) as error:
            raise UserError(
                f"the copy of the model in {folder} is damaged ({first_line(error)}); train again."
            ) from None
        return folder, {key: math.nan if value is None else value for key, value in values.items()}, example

    def remove_model(self) -> None:
        """Remove the copy of the model, once MLflow has it."""
        remove(self.folder / MODEL, self.folder)

    def points(self, position: int = 0, limit: int = 1000) -> tuple[list[Point], int]:
        """Return about ``limit`` values from a byte position of metrics.jsonl on, and the position after them.

        A line that a kill cut short is skipped; a last line without a line end is left for the next call.
        """
        points: list[Point] = []
        with suppress(FileNotFoundError), (self.folder / METRICS).open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n") or len(points) >= limit:
                    break
                points += _parse_line(line)
                position += len(line)
        return points, position

    def all_points(self) -> Iterator[Point]:
        """Yield all values, in the order of the file."""
        previous, position = -1, 0
        while position != previous:
            previous = position
            points, position = self.points(previous)
            yield from points

    def images(self) -> list[LoggedImage]:
        """Return all images, oldest first."""
        folder = self.folder / IMAGES
        matches = [(IMAGE_NAME.fullmatch(file.name), file) for file in (folder.iterdir() if folder.is_dir() else ())]
        images = [
            LoggedImage(match[1].replace("~", "/"), int(match[2]), int(match[3]), file)
            for match, file in matches
            if match and _is_key(match[1].replace("~", "/"))
        ]
        return sorted(images, key=lambda image: (image.timestamp, image.step, image.key))

    @contextmanager
    def run_lock(self) -> Iterator[None]:
        """Hold a lock while the MLflow run is created: two processes at the same time would create two runs."""
        with exclusive_lock(self.folder / ".opening.lock"):
            yield

    def _append(self, line: bytes) -> None:
        """Append a line in one unbuffered write, so that it survives a kill of the process."""
        try:
            self._file = self._file or self._open_for_append()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file = None  # opened again at the next append, which then ends a line that was cut
            raise

    def _open_for_append(self) -> "io.FileIO":
        """Open metrics.jsonl for appending; add a line end if the last line was cut."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / METRICS).open("ab+", buffering=0)
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        return file


def _parse_line(line: bytes) -> list[Point]:
    try:
        entry = parse_json(line)
        step, timestamp = int(entry["step"]), int(entry["time"])
        if max(abs(step), abs(timestamp)) > LARGEST_INT:
            return []
        return [Point(key, float(value), timestamp, step) for key, value in entry["metrics"].items() if _is_key(key)]
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _is_key(key: str) -> bool:
    """Return whether MLflow takes a key, which is a path in its artifacts for an image."""
    return KEY_PATTERN.fullmatch(key) is not None and ".." not in key.split("/") and not key.startswith("/")


def _check_key(key: str) -> None:
    if not _is_key(key):
        raise UserError(
            f"{key!r} cannot be logged to MLflow: use a name of at most 250 letters, digits, spaces and _ - . / only."
        )


def _now() -> int:
    return int(time.time() * 1000)

"""What a run logs, on the local disk: written there first, so that no state of MLflow can lose any of it."""

import errno
import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import UserError
from denoise.files import write_folder, write_json
from pipelines.tracking.model import MODEL_FILES
from pipelines.tracking.runs import RunSpec

if TYPE_CHECKING:
    import io

    import numpy as np

    from pipelines.tracking.client import Status

RUN, METRICS, IMAGES, STATUS, MODEL = "run.json", "metrics.jsonl", "pictures", "status.json", "model"
KEY = re.compile(r"[a-zA-Z0-9_\-. /]{1,250}")  # what MLflow takes as the name of a metric or image
NAME = re.compile(r"(.+)\+step\+(-?\d+)\+timestamp\+(\d+)(\.\w+)?")  # of the file of an image


class Point(NamedTuple):
    """A value of a metric."""

    key: str
    value: float
    timestamp: int  # milliseconds since the epoch
    step: int


class LoggedImage(NamedTuple):
    """An image, in a file of its own."""

    key: str
    step: int
    timestamp: int
    file: Path  # of an image format, or .npy


class Ended(NamedTuple):
    """How and when a run ended."""

    status: "Status"
    time: int  # milliseconds since the epoch


class Journal:
    """A folder that holds all of a run that MLflow has to be told: plain files, readable without MLflow.

    run.json opens the MLflow run, a line of metrics.jsonl is one call of ``add_metrics``, ``images/`` holds
    images as given, status.json says how the run ended, ``model/`` is there while the model has to be logged. A
    kill loses nothing that was added, since every addition is one write or one rename. A later attempt of the run
    goes on in the same folder: what it repeats stays, and the first value of a step counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: io.FileIO | None = None
        self._lock = threading.Lock()  # training and the thread that samples the machine's load both add metrics

    def begin(self, spec: RunSpec) -> RunSpec:
        """Note what opens the run, and that it goes on; return it with the time at which its first attempt began."""
        spec = self.note(spec)
        (self.folder / STATUS).unlink(missing_ok=True)
        return spec

    def note(self, spec: RunSpec) -> RunSpec:
        """Write down what opens the run (the newest counts), and return it as of its first attempt."""
        with suppress(UserError):  # there may be none yet, or a damaged one
            earlier = self.run_spec()
            spec = replace(spec, started=earlier.started or spec.started)
        write_json(self.folder / RUN, spec.as_dict())
        return spec

    def run_spec(self) -> RunSpec:
        """Return what opens the run.

        Raises:
            UserError: the folder is no journal.
        """
        try:
            return RunSpec.from_dict(json.loads((self.folder / RUN).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError(
                f"{self.folder} is no journal of a run: it has no {RUN} that can be read; start the run again."
            ) from None

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step; NaN and infinities are allowed.

        Raises:
            OSError: the disk is full, or the folder may not be written.
        """
        for key in metrics:
            _check_key(key)
        values = {key: float(value) for key, value in metrics.items()}
        line = json.dumps({"step": step, "time": _now(), "metrics": values})
        with self._lock:
            self._append(line.encode() + b"\n")

    def add_image(self, key: str, image: "Path | np.ndarray[Any, Any]", step: int) -> None:
        """Add an image: the bytes of a file, or an array.

        Raises:
            OSError: the disk is full, or a folder may not be written or read.
        """
        import numpy as np

        _check_key(key)
        suffix = image.suffix if isinstance(image, Path) else ".npy"
        file = self.folder / IMAGES / f"{key.replace('/', '~')}+step+{step}+timestamp+{_now()}{suffix}"
        work = self.folder / f".{file.name}.partial"
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            shutil.copyfile(image, work)
        else:
            with work.open("wb") as written:
                np.save(written, image, allow_pickle=False)
        work.replace(file)

    def set_status(self, status: "Status") -> None:
        """Note how the run ended."""
        write_json(self.folder / STATUS, {"status": status, "time": _now()})

    def ended(self) -> Ended | None:
        """Return how and when the run ended, None while that is not known."""
        try:
            tree = json.loads((self.folder / STATUS).read_text(encoding="utf-8"))
            return Ended(tree["status"], int(tree["time"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def set_model(self, model_folder: Path, figures: Mapping[str, float], example: "np.ndarray[Any, Any]") -> None:
        """Keep a copy of the run's model until MLflow has it: the folder may hold another one by then.

        Args:
            model_folder: holds model.json and net.safetensors.
            figures: of the model, logged with it.
            example: noisy batch (B, C, H, W), float32 in [0, 1].
        """
        import numpy as np

        def write(work: Path) -> None:
            for name in MODEL_FILES:
                shutil.copyfile(model_folder / name, work / name)
            write_json(work / "figures.json", dict(figures))
            np.save(work / "example.npy", example, allow_pickle=False)

        write_folder(self.folder / MODEL, write)

    def model(self) -> "tuple[Path, dict[str, float], np.ndarray[Any, Any]] | None":
        """Return (folder, figures, example) of a model that MLflow does not have yet, None where there is none."""
        import numpy as np

        folder = self.folder / MODEL
        if not folder.is_dir():
            return None
        figures: dict[str, float] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
        return folder, figures, np.load(folder / "example.npy")

    def forget_model(self) -> None:
        """Remove the copy of the model: MLflow has it."""
        shutil.rmtree(self.folder / MODEL, ignore_errors=True)

    def points(self, position: int = 0, limit: int = 1000) -> tuple[list[Point], int]:
        """Return the values from a position of metrics.jsonl on, some ``limit`` of them, and the position after them.

        A line that a kill cut is skipped; one that has no end yet is left for the next call.
        """
        found: list[Point] = []
        with suppress(FileNotFoundError), (self.folder / METRICS).open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n") or len(found) >= limit:
                    break
                found += _points_of(line)
                position += len(line)
        return found, position

    def all_points(self) -> Iterator[Point]:
        """Yield every value."""
        before, position = -1, 0
        while position != before:
            before = position
            points, position = self.points(before)
            yield from points

    def images(self) -> list[LoggedImage]:
        """Return all images, the oldest first."""
        folder = self.folder / IMAGES
        parts = [(NAME.fullmatch(file.name), file) for file in (folder.iterdir() if folder.is_dir() else ())]
        found = [
            LoggedImage(match[1].replace("~", "/"), int(match[2]), int(match[3]), file)
            for match, file in parts
            if match
        ]
        return sorted(found, key=lambda image: (image.timestamp, image.step, image.key))

    @contextmanager
    def opening_run(self) -> Iterator[None]:
        """Hold the journal while its MLflow run is opened: two processes that do so at once would make two runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".opening.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _append(self, line: bytes) -> None:
        """Add a line in one write without a buffer: what was written survives the process."""
        try:
            self._file = self._file or self._opened()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file = None  # the next one looks whether this line was cut
            raise

    def _opened(self) -> "io.FileIO":
        """Open metrics.jsonl for appending, after a line end if an earlier attempt was cut in a line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / METRICS).open("ab+", buffering=0)
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        return file


def _points_of(line: bytes) -> list[Point]:
    try:
        entry = json.loads(line)
        step, timestamp = int(entry["step"]), int(entry["time"])
        return [Point(key, float(value), timestamp, step) for key, value in entry["metrics"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _check_key(key: str) -> None:
    if not KEY.fullmatch(key):
        raise UserError(
            f"{key!r} cannot be logged to MLflow: use a name of at most 250 letters, digits, spaces and _ - . / only."
        )


def _now() -> int:
    return int(time.time() * 1000)

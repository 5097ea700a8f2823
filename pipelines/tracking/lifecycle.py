"""The life of a run as its driver sees it, with MLflow there or not: begin, finish, and bring what MLflow lacks."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import UserError
from denoise.files import locked
from pipelines.tracking.client import UnreachableError, client, finish_run, first_line, known_run, plain_errors, shown
from pipelines.tracking.journal import RUN, Ended, Journal
from pipelines.tracking.owner import is_gone, this_driver, this_host
from pipelines.tracking.runs import Opening, ensure_run, open_run

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipelines.tracking.client import Status

JOURNAL = "journal"  # the folder of a run's journal, in the run's folder in ray.storage


class Synced(NamedTuple):
    """What a run has in MLflow after ``sync``."""

    name: str
    run_id: str
    metrics: int  # values brought now
    pictures: int  # brought now
    status: str  # in MLflow


@dataclass(frozen=True)
class Missing:
    """What MLflow lacks of a run."""

    metrics: int
    pictures: int
    model: bool
    status: bool

    def __str__(self) -> str:
        counted = [f"{self.metrics} metrics"] * bool(self.metrics) + [f"{self.pictures} pictures"] * bool(self.pictures)
        others = ["the model"] * self.model + ["its end"] * self.status
        return ", ".join(counted + others) or "nothing"


def journal_folder(storage: str, name: str) -> Path:
    """Return the folder of a run's journal: in ``ray.storage``, or in runs/ where that is on S3."""
    return (_base(storage) / name / JOURNAL).absolute()


def _base(storage: str) -> Path:
    return Path("runs" if "://" in storage else storage)


def begin(opening: Opening, folder: Path) -> Opening:
    """Note that this process drives the run from now on, and open it in MLflow if that answers.

    Args:
        opening: what opens the run.
        folder: of its journal.

    Returns:
        ``opening`` with its driver: what rank 0's RunLog needs.

    Raises:
        UserError: MLflow refuses the run for good, or the journal cannot be written.
    """
    now = int(time.time() * 1000)
    journal = Journal(folder)
    opening = journal.begin(replace(opening, driver=this_driver(), started=opening.started or now))
    try:
        with journal.opening_run():
            open_run(opening)
    except UnreachableError as error:
        print(
            f"warning: {str(error).removesuffix('.')}; run {opening.name} goes on without it, and what it logs is kept "
            f"in {folder}.",
            file=sys.stderr,
        )
    return opening


def finish(folder: Path, status: "Status") -> Synced | None:
    """Note how the run ended, bring to MLflow what it lacks, and return what it has then.

    If that fails, one warning says what brings it later, and None is returned: the run has ended all the same.
    """
    journal = Journal(folder)
    try:
        journal.set_status(status)
        return sync(folder)
    except Exception as error:  # a tracker must not change how training ended, whatever it raises
        name = folder.parent.name
        with suppress(UserError):
            name = journal.opening().name
        print(
            f"warning: MLflow does not know yet that run {name} is {status} ({first_line(error)}); "
            f"`denoise runs sync {name}` brings that and all else it lacks.",
            file=sys.stderr,
        )
        return None


@dataclass
class Driven:
    """A run that is driven by this process."""

    opening: Opening
    synced: Synced | None = None  # what MLflow has of it, once it has ended


@contextmanager
def driven(opening: Opening, folder: Path) -> Iterator[Driven]:
    """Begin a run, and finish it as the block ends: FINISHED, FAILED by an exception, KILLED by Ctrl-C or SIGTERM."""
    with _sigterm_ends():
        run = Driven(begin(opening, folder))
        try:
            yield run
        except Exception:
            finish(folder, "FAILED")
            raise
        except BaseException:  # KeyboardInterrupt, SystemExit
            finish(folder, "KILLED")
            raise
        run.synced = finish(folder, "FINISHED")


def sync(folder: Path) -> Synced:
    """Bring to MLflow what a journal holds and its run lacks; a second time changes nothing.

    Raises:
        UserError: MLflow does not answer, or the folder is no journal.
    """
    from pipelines.tracking.replay import RunWriter

    journal = Journal(folder)
    opening = journal.opening()
    with locked(folder, "syncing"):
        with journal.opening_run():
            run = ensure_run(opening)
        run_id: str = run.info.run_id
        writer = RunWriter(client(opening.uri), run_id, journal)
        with plain_errors(opening.uri):
            writer.write()
        _log_model(journal, opening, run_id)
        status = _settle(journal, opening, run)
    return Synced(opening.name, run_id, writer.metrics, writer.pictures, status)


def missing(folder: Path) -> Missing:
    """Return what MLflow lacks of a run, without changing anything.

    Raises:
        UserError: MLflow does not answer, or the folder is no journal.
    """
    from pipelines.tracking.replay import RunWriter

    journal = Journal(folder)
    opening = journal.opening()
    run = known_run(opening.uri, opening.experiment, opening.name)
    model, ended = journal.model() is not None, _ended(journal, opening)
    if run is None:
        points = {(point.key, point.step) for point in journal.all_points()}
        pictures = {(picture.key, picture.step) for picture in journal.pictures()}
        return Missing(len(points), len(pictures), model, ended is not None)
    with plain_errors(opening.uri):
        writer = RunWriter(client(opening.uri), run.info.run_id, journal, dry=True)
        writer.write()
    return Missing(writer.metrics, writer.pictures, model, ended is not None and ended.status != run.info.status)


def journals(storage: str, names: Sequence[str] = ()) -> dict[str, Path]:
    """Return the journals of this machine by the name of their run: those named, or all.

    Raises:
        UserError: a run that has no journal here.
    """
    base = _base(storage)
    found = {path.parents[1].name: path.parent.absolute() for path in base.glob(f"*/{JOURNAL}/{RUN}")}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UserError(f"there is no journal of {unknown[0]} in {base}; `denoise runs list` names those there are.")
    return {name: found[name] for name in names or sorted(found)}


def listed(folder: Path) -> dict[str, Any]:
    """Return a run as ``denoise runs list`` shows it: name, last step in the journal, status, what MLflow lacks."""
    journal = Journal(folder)
    opening = journal.opening()
    steps = (point.step for point in journal.all_points() if not point.key.startswith("system/"))
    ended = _ended(journal, opening)
    running = opening.driver.startswith(f"{this_host()} ")
    row = {
        "name": opening.name,
        "steps": max(steps, default=0),
        "status": ended.status if ended else "RUNNING" if running else "UNKNOWN",
        "uri": shown(opening.uri),
    }
    try:
        return {**row, "missing": asdict(missing(folder))}
    except UserError as error:
        return {**row, "missing": None, "error": str(error)}


def _ended(journal: Journal, opening: Opening) -> Ended | None:
    """Return how the run ended; a driver of this host that is gone without a word was killed."""
    if ended := journal.ended():
        return ended
    if is_gone(opening.driver):
        last = max((point.timestamp for point in journal.all_points()), default=opening.started)
        return Ended("KILLED", last)
    return None


def _settle(journal: Journal, opening: Opening, run: "Run") -> str:
    """Give the run its final status if there is one and it has another, and return what it has then."""
    status: str = run.info.status
    ended = _ended(journal, opening)
    if ended is None or ended.status == status:
        return status
    finish_run(opening.uri, run.info.run_id, ended.status, ended.time)
    return ended.status


def _log_model(journal: Journal, opening: Opening, run_id: str) -> None:
    from pipelines.tracking.model import log_model

    kept = journal.model()
    if kept is not None:
        folder, figures, example = kept
        log_model(opening.uri, run_id, folder, example, figures)
        journal.forget_model()


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """Let SIGTERM end the block by SystemExit, so that it is left as by Ctrl-C; only the main thread may say so."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

"""The life of a run as its driver sees it, with MLflow there or not: begin, finish, and bring what MLflow lacks."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import UserError, first_line
from denoise.files import locked
from pipelines.signals import exit_on_sigterm, on_sigterm
from pipelines.tracking.client import UnreachableError, client, finish_run, known_run, plain_errors, without_password
from pipelines.tracking.journal import RUN, Ended, Journal
from pipelines.tracking.owner import has_died, this_host, this_process
from pipelines.tracking.runs import RunSpec, ensure_run, get_or_create_run

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipelines.signals import exit_on_sigterm, on_sigterm
from pipelines.tracking.client import Status

JOURNAL = "journal"  # the folder of a run's journal, in the run's folder in ray.storage


class Synced(NamedTuple):
    """What a run has in MLflow after ``sync``."""

    name: str
    run_id: str
    metrics: int  # values brought now
    images: int  # brought now
    status: str  # in MLflow


@dataclass(frozen=True)
class Missing:
    """What MLflow lacks of a run."""

    metrics: int
    images: int
    model: bool
    status: bool

    def __str__(self) -> str:
        counted = [f"{self.metrics} metrics"] * bool(self.metrics) + [f"{self.images} images"] * bool(self.images)
        others = ["the model"] * self.model + ["its end"] * self.status
        return ", ".join(counted + others) or "nothing"


def journal_folder(storage: str, name: str) -> Path:
    """Return the folder of a run's journal: in ``ray.storage``, or in runs/ where that is on S3."""
    return (_base(storage) / name / JOURNAL).absolute()


def _base(storage: str) -> Path:
    return Path("runs" if "://" in storage else storage)


def begin(spec: RunSpec, folder: Path) -> RunSpec:
    """Note that this process drives the run from now on, and open it in MLflow if that answers.

    Args:
        spec: what opens the run.
        folder: of its journal.

    Returns:
        ``spec`` with its driver: what rank 0's MlflowLogger needs.

    Raises:
        UserError: MLflow refuses the run for good, or the journal cannot be written.
    """
    now = int(time.time() * 1000)
    journal = Journal(folder)
    spec = journal.begin(replace(spec, driver=this_process(), started=spec.started or now))
    try:
        with journal.opening_run():
            get_or_create_run(spec)
    except UnreachableError as error:
        print(
            f"warning: {str(error).removesuffix('.')}; run {spec.name} goes on without it, and what it logs is kept "
            f"in {folder}.",
            file=sys.stderr,
        )
    return spec


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
            name = journal.run_spec().name
        print(
            f"warning: MLflow does not know yet that run {name} is {status} ({first_line(error)}); "
            f"`denoise runs sync {name}` brings that and all else it lacks.",
            file=sys.stderr,
        )
        return None


@dataclass
class TrackedRun:
    """A run that is driven by this process."""

    spec: RunSpec
    synced: Synced | None = None  # what MLflow has of it, once it has ended


@contextmanager
def tracked_run(spec: RunSpec, folder: Path) -> Iterator[TrackedRun]:
    """Begin a run, and finish it as the block ends: FINISHED, FAILED by an exception, KILLED by Ctrl-C or SIGTERM."""
    with on_sigterm(exit_on_sigterm):
        run = TrackedRun(begin(spec, folder))
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
    from pipelines.tracking.replay import JournalReplay

    journal = Journal(folder)
    spec = journal.run_spec()
    with locked(folder, "syncing"):
        with journal.opening_run():
            run = ensure_run(spec)
        run_id: str = run.info.run_id
        writer = JournalReplay(client(spec.uri), run_id, journal)
        with plain_errors(spec.uri):
            writer.write()
        _log_model(journal, spec, run_id)
        status = _settle(journal, spec, run)
    return Synced(spec.name, run_id, writer.metrics, writer.images, status)


def missing(folder: Path) -> Missing:
    """Return what MLflow lacks of a run, without changing anything.

    Raises:
        UserError: MLflow does not answer, or the folder is no journal.
    """
    from pipelines.tracking.replay import JournalReplay

    journal = Journal(folder)
    spec = journal.run_spec()
    run = known_run(spec.uri, spec.experiment, spec.name)
    model, ended = journal.model() is not None, _ended(journal, spec)
    if run is None:
        points = {(point.key, point.step) for point in journal.all_points()}
        images = {(image.key, image.step) for image in journal.images()}
        return Missing(len(points), len(images), model, ended is not None)
    with plain_errors(spec.uri):
        writer = JournalReplay(client(spec.uri), run.info.run_id, journal, dry=True)
        writer.write()
    return Missing(writer.metrics, writer.images, model, ended is not None and ended.status != run.info.status)


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
    spec = journal.run_spec()
    steps = (point.step for point in journal.all_points() if not point.key.startswith("system/"))
    ended = _ended(journal, spec)
    running = spec.driver.startswith(f"{this_host()} ")
    row = {
        "name": spec.name,
        "steps": max(steps, default=0),
        "status": ended.status if ended else "RUNNING" if running else "UNKNOWN",
        "uri": without_password(spec.uri),
    }
    try:
        return {**row, "missing": asdict(missing(folder))}
    except UserError as error:
        return {**row, "missing": None, "error": str(error)}


def _ended(journal: Journal, spec: RunSpec) -> Ended | None:
    """Return how the run ended; a driver of this host that is gone without a word was killed."""
    if ended := journal.ended():
        return ended
    if has_died(spec.driver):
        last = max((point.timestamp for point in journal.all_points()), default=spec.started)
        return Ended("KILLED", last)
    return None


def _settle(journal: Journal, spec: RunSpec, run: "Run") -> str:
    """Give the run its final status if there is one and it has another, and return what it has then."""
    status: str = run.info.status
    ended = _ended(journal, spec)
    if ended is None or ended.status == status:
        return status
    finish_run(spec.uri, run.info.run_id, ended.status, ended.time)
    return ended.status


def _log_model(journal: Journal, spec: RunSpec, run_id: str) -> None:
    from pipelines.tracking.model import log_model

    kept = journal.model()
    if kept is not None:
        folder, figures, example = kept
        log_model(spec.uri, run_id, folder, example, figures)
        journal.forget_model()

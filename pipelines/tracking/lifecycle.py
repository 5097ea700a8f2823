"""Begin and end of a run, whether MLflow answers or not, and sync: sending afterwards what MLflow lacks."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import UserError, first_line
from denoise.files import lock_folder, require_name
from denoise.redaction import HIDDEN, without_passwords
from pipelines.signals import exit_on_sigterm, on_sigterm
from pipelines.tracking.client import UnreachableError, client, database_in_use, existing_run, finish_run, plain_errors
from pipelines.tracking.journal import RUN, FinalStatus, Journal
from pipelines.tracking.owner import has_died, this_host, this_process
from pipelines.tracking.runs import RunSpec, ensure_run, get_or_create_run

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipelines.tracking.client import Status

JOURNAL = "journal"  # the folder of the journal, in the run's folder in ray.storage


class SyncResult(NamedTuple):
    """What ``sync`` sent of a run, and the status that the run has in MLflow."""

    name: str
    run_id: str
    metrics: int  # values sent now
    images: int  # sent now
    status: str  # in MLflow


@dataclass(frozen=True)
class MissingData:
    """What MLflow lacks of a run."""

    metrics: int
    images: int
    model: bool
    status: bool

    def __str__(self) -> str:
        counts = [f"{self.metrics} metrics"] * bool(self.metrics) + [f"{self.images} images"] * bool(self.images)
        flags = ["the model"] * self.model + ["the final status"] * self.status
        return ", ".join(counts + flags) or "nothing"


def journal_folder(storage: str, name: str) -> Path:
    """Return the folder of a run's journal: in ``ray.storage``, or in runs/ if that is on S3."""
    return (_runs_folder(storage) / require_name(name, "the name of the run") / JOURNAL).absolute()


def _runs_folder(storage: str) -> Path:
    return Path("runs" if "://" in storage else storage)


def begin(spec: RunSpec, folder: Path) -> RunSpec:
    """Make this process the owner of the run, in the journal, and in MLflow if that answers.

    Args:
        spec: definition of the run.
        folder: of its journal.

    Returns:
        ``spec`` with its owner and start time, for rank 0's logger.

    Raises:
        UserError: MLflow refuses the run for good, or the journal cannot be written.
    """
    now = int(time.time() * 1000)
    journal = Journal(folder)
    spec = journal.start_attempt(replace(spec, owner=this_process(), started=spec.started or now))
    try:
        with journal.run_lock():
            get_or_create_run(spec)
    except UnreachableError as error:
        print(
            f"warning: {str(error).removesuffix('.')}; run {spec.name} goes on without it, and what it logs is kept "
            f"in {folder}.",
            file=sys.stderr,
        )
    return spec


def finish(folder: Path, status: "Status", address: str = "") -> SyncResult | None:
    """Write the final status, send to MLflow what it lacks, and return what was sent.

    If that fails, a warning names the command that sends it later, and None is returned. ``address`` is as in ``sync``.
    """
    journal = Journal(folder)
    try:
        journal.set_status(status)
        return sync(folder, address)
    except Exception as error:  # a tracker must not change how training ended, whatever it raises
        name = folder.parent.name
        with suppress(UserError):
            name = journal.run_spec().name
        print(
            f"warning: MLflow does not know yet that run {name} is {status} ({first_line(error)}); "
            f"`denoise runs sync {name}` sends that and all else it lacks.",
            file=sys.stderr,
        )
        return None


@dataclass
class TrackedRun:
    """A run whose owner is this process."""

    spec: RunSpec
    synced: SyncResult | None = None  # set once the run has ended


@contextmanager
def tracked_run(spec: RunSpec, folder: Path) -> Iterator[TrackedRun]:
    """Begin a run, and finish it as the block ends: FINISHED, FAILED (an exception), KILLED (Ctrl-C or SIGTERM)."""
    with on_sigterm(exit_on_sigterm), database_in_use(spec.uri):
        run = TrackedRun(begin(spec, folder))
        try:
            yield run
        except Exception:
            finish(folder, "FAILED", spec.uri)
            raise
        except BaseException:  # KeyboardInterrupt, SystemExit
            finish(folder, "KILLED", spec.uri)
            raise
        run.synced = finish(folder, "FINISHED", spec.uri)


def sync(folder: Path, address: str = "") -> SyncResult:
    """Send to MLflow what its run lacks of a journal; a second call changes nothing.

    Args:
        folder: of the journal.
        address: the absolute tracking uri of now, which has the password that a journal does not keep.

    Raises:
        UserError: MLflow does not answer, the folder is no journal, or the password is missing.
    """
    from pipelines.tracking.logger import JournalReplay

    journal = Journal(folder)
    spec = _with_password(journal.run_spec(), address)
    with lock_folder(folder, "syncing"):
        with journal.run_lock():
            run = ensure_run(spec)
        run_id: str = run.info.run_id
        replay = JournalReplay(client(spec.uri), run_id, journal)
        with plain_errors(spec.uri):
            replay.send()
        _send_model(journal, spec, run_id)
        status = _send_status(journal, spec, run)
    return SyncResult(spec.name, run_id, replay.metrics, replay.images, status)


def find_missing(folder: Path, address: str = "") -> MissingData:
    """Return what MLflow lacks of a run, without changing anything; arguments and errors are those of ``sync``."""
    from pipelines.tracking.logger import JournalReplay

    journal = Journal(folder)
    spec = _with_password(journal.run_spec(), address)
    run = existing_run(spec.uri, spec.experiment, spec.name)
    model, final = journal.pending_model() is not None, _final_status(journal, spec)
    if run is None:
        points = {(point.key, point.step) for point in journal.all_points()}
        images = {(image.key, image.step) for image in journal.images()}
        return MissingData(len(points), len(images), model, final is not None)
    with plain_errors(spec.uri):
        replay = JournalReplay(client(spec.uri), run.info.run_id, journal, dry_run=True)
        replay.send()
    return MissingData(replay.metrics, replay.images, model, final is not None and final.status != run.info.status)


def _with_password(spec: RunSpec, address: str) -> RunSpec:
    """Return a run's definition with the password of ``address``, if that is the address in the journal."""
    if HIDDEN not in spec.uri:
        return spec
    if without_passwords(address) != spec.uri:
        raise UserError(
            f"the journal of {spec.name} keeps no password for {spec.uri}; give the whole address as tracking.uri, in "
            "params.yaml or with -S tracking.uri=..."
        )
    return replace(spec, uri=address)


def find_journals(storage: str, names: Sequence[str] = ()) -> dict[str, Path]:
    """Return the journal folders on this machine by run name: of the named runs, or of all.

    Raises:
        UserError: a named run has no journal here.
    """
    base = _runs_folder(storage)
    folders = {path.parents[1].name: path.parent.absolute() for path in base.glob(f"*/{JOURNAL}/{RUN}")}
    unknown = [name for name in names if name not in folders]
    if unknown:
        raise UserError(f"there is no journal of {unknown[0]} in {base}; `denoise runs list` lists them.")
    return {name: folders[name] for name in names or sorted(folders)}


def list_row(folder: Path, address: str = "") -> dict[str, Any]:
    """Return a run's row of ``denoise runs list``: name, last step in the journal, status, what MLflow lacks.

    ``address`` is as in ``sync``.
    """
    journal = Journal(folder)
    spec = journal.run_spec()
    steps = (point.step for point in journal.all_points() if not point.key.startswith("system/"))
    final = _final_status(journal, spec)
    is_local = spec.owner.startswith(f"{this_host()} ")
    row = {
        "name": spec.name,
        "steps": max(steps, default=0),
        "status": final.status if final else "RUNNING" if is_local else "UNKNOWN",
        "uri": without_passwords(spec.uri),
    }
    try:
        return {**row, "missing": asdict(find_missing(folder, address))}
    except UserError as error:
        return {**row, "missing": None, "error": str(error)}


def _final_status(journal: Journal, spec: RunSpec) -> FinalStatus | None:
    """Return the final status, KILLED if the owner died without writing one; None while the run may go on."""
    if final := journal.final_status():
        return final
    if has_died(spec.owner):
        last = max((point.timestamp for point in journal.all_points()), default=spec.started)
        return FinalStatus("KILLED", last)
    return None


def _send_status(journal: Journal, spec: RunSpec, run: "Run") -> str:
    """Set the final status in MLflow if it is known and differs, and return the status that MLflow has then."""
    status: str = run.info.status
    final = _final_status(journal, spec)
    if final is None or final.status == status:
        return status
    finish_run(spec.uri, run.info.run_id, final.status, final.time)
    return final.status


def _send_model(journal: Journal, spec: RunSpec, run_id: str) -> None:
    from pipelines.tracking.model import log_model

    model = journal.pending_model()
    if model is not None:
        folder, metrics, example = model
        log_model(spec.uri, run_id, folder, example, metrics)
        journal.remove_model()

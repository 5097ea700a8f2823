"""MLflow runs: plain functions that take the tracking uri and the run id, and keep no state of their own.

One training run is one MLflow run, however often its processes die: the driver opens it by name (run_opening.py),
rank 0 writes to it (run_log.py), and the driver closes it (run_sync.py).
"""

import fcntl
import getpass
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from denoise.errors import UserError, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_TAG = "denoise.run"  # the logical name of a run: what open_run finds it by
Status = Literal["FINISHED", "FAILED", "KILLED"]  # how a run can end

# MLflow reads its settings from the environment only, and some when it is imported. What the user has set wins.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # else every new database prints some fifty lines
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 14 s; its own default of 7 blocks for 4 minutes
}
# What MLflow calls errors that a second try may not meet; a request that got no answer is an INTERNAL_ERROR.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class UnreachableError(UserError):
    """MLflow does not answer now, but may later: training goes on, and what it logs is brought afterwards."""


def resolve_uri(uri: str, root: Path) -> str:
    """Return an absolute tracking uri; the path of ``sqlite:///mlflow.db`` is taken relative to ``root``.

    Raises:
        UserError: a file store, which MLflow 3 refuses, or no uri at all.
    """
    if re.match(r"(https?|postgresql|mysql|mssql)(\+\w+)?://\S", uri):
        return uri.rstrip("/")
    path = uri.removeprefix("sqlite:///")
    if path != uri and path:
        return f"sqlite:///{(root.resolve() / path)}"
    raise UserError(
        f"tracking.uri={uri} cannot be used: MLflow 3 keeps its runs in a database or behind a server; "
        "use sqlite:///mlflow.db, postgresql://... or http://HOST:PORT."
    )


def database(uri: str) -> Path | None:
    """Return the file of a sqlite uri, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def artifact_root(uri: str) -> Path | None:
    """Return the folder where an embedded (sqlite) MLflow keeps images and models, None for any other."""
    file = database(uri)
    return file.with_name("mlartifacts") if file else None


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold the lock file beside a sqlite database; do nothing for a server. Must not be nested."""
    file = database(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        yield


def client(uri: str) -> "MlflowClient":
    """Return MLflow's client for an absolute uri, creating the database if it does not exist.

    Processes that do this at the same time wait for each other: MLflow's own creation of the tables fails for all
    but one of them.

    Raises:
        UnreachableError: MLflow does not answer there.
        UserError: the database cannot be opened.
    """
    check_answers(uri)
    set_environment()
    import mlflow

    try:
        with locked(uri):
            _create_database(uri)
            return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:  # whatever the database driver raises
        kind = UserError if database(uri) else UnreachableError  # a file does not get better, a database server may
        raise kind(f"MLflow cannot open {without_password(uri)}: {first_line(error)}.") from error


def set_environment() -> None:
    """Set what MLflow reads from the environment; call it before mlflow is imported."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def _create_database(uri: str) -> None:
    """Put a new sqlite database in place, whole: one left half-made by a kill could never be opened again."""
    file = database(uri)
    if file is None or (file.exists() and file.stat().st_size):
        return
    from mlflow.store.db import utils
    from sqlalchemy import create_engine, event

    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{partial}")
    # Hundreds of small transactions, and a file that nobody reads before it is complete: one sync at the end will do.
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(file)


def check_answers(uri: str) -> None:
    """Raise UnreachableError, within 3 s, if an MLflow server does not answer; other uris always pass.

    Raises:
        UnreachableError: nobody listens, or what listens is silent or has no MLflow behind it now.
        UserError: something answers that is no MLflow, or that does not let us in.
    """
    if not uri.startswith("http"):
        return
    import requests

    try:
        requests.get(f"{uri}/health", timeout=3).raise_for_status()
    except requests.RequestException as error:
        refused = error.response is not None and error.response.status_code < 500
        raise (UserError if refused else UnreachableError)(
            f"MLflow at {without_password(uri)} does not answer ({type(error).__name__}): start it, or set "
            "tracking.uri=sqlite:///mlflow.db."
        ) from None


def ask(uri: str) -> None:
    """Ask MLflow for an experiment, which takes it, its database and the right to read.

    Raises:
        UserError: it does not answer, or does not let us in.
    """
    api = client(uri)
    with plain_errors(uri):
        api.search_experiments(max_results=1)


@contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one sentence: UnreachableError where the reason may be gone later."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:  # the latter from uploads of files
        kind = UnreachableError if getattr(error, "error_code", PASSING[0]) in PASSING else UserError
        raise kind(f"MLflow at {without_password(uri)} failed: {first_line(error)}.") from error


def without_password(uri: str) -> str:
    """Return the uri without the password that it may hold."""
    return re.sub(r"//[^@/]*@", "//***@", uri)


def user() -> str:
    """Return the name of who runs this process, for the records."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())


def finish_run(uri: str, run_id: str, status: Status, end_time: int | None = None) -> None:
    """Give the run its final status, as of ``end_time`` (milliseconds since the epoch) or of now."""
    api = client(uri)
    with plain_errors(uri):
        api.set_terminated(run_id, status=status, end_time=end_time)


def find_run(api: "MlflowClient", experiment_id: str, name: str) -> "Run | None":
    """Return the run of that logical name, the oldest one, or None."""
    quote = '"' if "'" in name else "'"
    query = f"tags.`{RUN_TAG}` = {quote}{name}{quote}"
    found = api.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"], max_results=1)
    return found[0] if found else None


def run_of_model(uri: str, experiment: str, name: str) -> str:
    """Return the id of the run called ``name``, which a model's card says it comes from.

    Raises:
        UserError: this MLflow has no such run.
    """
    run = known_run(uri, experiment, name)
    if run is None:
        raise UserError(
            f"MLflow at {without_password(uri)} has no run {name}; train the model with this tracking.uri first."
        )
    run_id: str = run.info.run_id
    return run_id


def known_run(uri: str, experiment: str, name: str) -> "Run | None":
    """Return the run called ``name`` if this MLflow has it; nothing is created."""
    api = client(uri)
    with plain_errors(uri):
        found = api.get_experiment_by_name(experiment)
        return find_run(api, found.experiment_id, name) if found else None

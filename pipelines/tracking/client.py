"""Access to MLflow: tracking uris, the client, runs by name, and errors as one sentence.

These are plain functions that take the tracking uri and the run id, and keep no state. One training run is one MLflow
run, however often its processes die: the driver finds or creates it by name (runs.py), rank 0 logs to it (logger.py),
and the driver ends it (lifecycle.py).
"""

import getpass
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from denoise.errors import UserError, first_line
from denoise.files import atomic_file, exclusive_lock
from denoise.redaction import without_passwords
from pipelines.tracking import relocation
from pipelines.tracking.database import absolute_sqlite_uri, sqlite_file, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_TAG = "denoise.run"  # the logical name of a run, by which get_or_create_run finds it
Status = Literal["FINISHED", "FAILED", "KILLED"]  # the final status of a run

# MLflow reads its settings from the environment only, some of them at import. What the user has set wins.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # otherwise every new database prints about fifty lines
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 14 s; its own default of 7 blocks for 4 minutes
}
# MLflow's codes of errors that may be gone at the next attempt; a request without an answer is an INTERNAL_ERROR.
TRANSIENT_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class UnreachableError(UserError):
    """MLflow does not answer now, but may later: training goes on, and what it logs is sent afterwards."""


def resolve_uri(uri: str, root: Path) -> str:
    """Return an absolute tracking uri; the path of ``sqlite:///mlflow.db`` is taken relative to ``root``.

    Raises:
        UserError: the uri names a file store, which MLflow 3 refuses, or is no tracking uri.
    """
    if re.match(r"(https?|postgresql|mysql|mssql)(\+\w+)?://\S", uri):
        return uri.rstrip("/")
    if database := absolute_sqlite_uri(uri, root):
        return database
    raise UserError(
        f"tracking.uri={uri} cannot be used: MLflow 3 stores runs in a database or behind a server; "
        "use sqlite:///mlflow.db, postgresql://... or http://HOST:PORT."
    )


def artifact_root(uri: str) -> Path | None:
    """Return the folder of images and models beside a sqlite database, None for any other uri."""
    file = sqlite_file(uri)
    return file.with_name(relocation.ARTIFACTS) if file else None


@contextmanager
def database_lock(uri: str) -> Iterator[None]:
    """Hold the lock file beside a sqlite database; do nothing for any other uri. Must not be nested."""
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    with exclusive_lock(file.with_name(file.name + ".lock")):
        yield


def client(uri: str) -> "MlflowClient":
    """Return MLflow's client for an absolute uri, creating the database if it does not exist.

    Processes that do this at the same time wait for each other: MLflow itself would create the tables in one of them
    and fail in the others.

    Raises:
        UnreachableError: MLflow does not answer at the uri.
        UserError: the database cannot be opened, or was moved and cannot be used where it is now (relocation.py).
    """
    check_reachable(uri)
    set_environment()
    try:
        with database_lock(uri):
            return _open_client(uri)
    except UserError:
        raise
    except Exception as error:  # whatever the database driver raises
        kind = UserError if sqlite_file(uri) else UnreachableError  # only a server may come back
        raise kind(f"MLflow cannot open {without_passwords(uri)}: {first_line(error)}.") from error


@contextmanager
def database_in_use(uri: str) -> Iterator[None]:
    """Keep a sqlite database, made if need be, from being relocated while the block runs; nothing for any other uri."""
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    client(uri)
    with relocation.in_use(file):
        yield


def set_environment() -> None:
    """Set the environment variables that MLflow reads, unless they are set; call this before mlflow is imported."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def _open_client(uri: str) -> "MlflowClient":
    import mlflow
    from mlflow.tracking._tracking_service import utils

    _create_database(uri)
    api = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    file = sqlite_file(uri)
    if file and relocation.relocate(file.absolute()):
        utils._artifact_repos_cache.clear()  # MLflow remembers the folder of a run by the run's id alone
    return api


def _create_database(uri: str) -> None:
    """Create a sqlite database under another name, then move it into place.

    MLflow cannot open a database whose creation was interrupted.
    """
    file = sqlite_file(uri)
    if file is None or (file.exists() and file.stat().st_size):
        return
    from mlflow.store.db import utils
    from sqlalchemy import create_engine, event

    with atomic_file(file, file.with_name(f".{file.name}.partial")) as partial:
        engine = create_engine(sqlite_uri(partial))
        # There are hundreds of small transactions, and nobody reads the file before it is complete: one sync is enough.
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        # Private, but MLflow has no public function that creates the tables in an engine of ours.
        utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
        engine.dispose()
        relocation.add_default_experiment(partial, file.absolute().with_name(relocation.ARTIFACTS))
        with partial.open("rb") as database:
            os.fsync(database.fileno())


def check_reachable(uri: str) -> None:
    """Check, within 3 s, that an MLflow server answers; other uris always pass.

    Raises:
        UnreachableError: nothing listens there, or it does not answer, or answers with a server error (5xx).
        UserError: the answer is a client error (4xx): it is no MLflow, or access is denied.
    """
    if not uri.startswith("http"):
        return
    import requests

    try:
        requests.get(f"{uri}/health", timeout=3).raise_for_status()
    except requests.RequestException as error:
        is_client_error = error.response is not None and error.response.status_code < 500
        raise (UserError if is_client_error else UnreachableError)(
            f"MLflow at {without_passwords(uri)} does not answer ({type(error).__name__}): start it, or set "
            "tracking.uri=sqlite:///mlflow.db."
        ) from None


def check_access(uri: str) -> None:
    """Check that MLflow and its database answer and may be read, by a query for experiments.

    Raises:
        UserError: MLflow does not answer, or denies access.
    """
    api = client(uri)
    with plain_errors(uri):
        api.search_experiments(max_results=1)


@contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into one sentence: UnreachableError where the cause may be temporary."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:  # the latter is raised by uploads of files
        kind = UnreachableError if getattr(error, "error_code", TRANSIENT_CODES[0]) in TRANSIENT_CODES else UserError
        raise kind(f"MLflow at {without_passwords(uri)} failed: {first_line(error)}.") from error


def user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user id that has no name
        return str(os.getuid())


def finish_run(uri: str, run_id: str, status: Status, end_time: int | None = None) -> None:
    """Set the final status of a run, with its end time (milliseconds since the epoch; now if None)."""
    api = client(uri)
    with plain_errors(uri):
        api.set_terminated(run_id, status=status, end_time=end_time)


def find_run(api: "MlflowClient", experiment_id: str, name: str) -> "Run | None":
    """Return the oldest run with that logical name, or None."""
    quote = '"' if "'" in name else "'"
    query = f"tags.`{RUN_TAG}` = {quote}{name}{quote}"
    runs = api.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"], max_results=1)
    return runs[0] if runs else None


def existing_run_id(uri: str, experiment: str, name: str) -> str:
    """Return the id of the run with that logical name, which a model card names as the model's origin.

    Raises:
        UserError: this MLflow has no such run.
    """
    run = existing_run(uri, experiment, name)
    if run is None:
        raise UserError(
            f"MLflow at {without_passwords(uri)} has no run {name}; train the model with this tracking.uri first."
        )
    run_id: str = run.info.run_id
    return run_id


def existing_run(uri: str, experiment: str, name: str) -> "Run | None":
    """Return the run with that logical name, or None; nothing is created."""
    api = client(uri)
    with plain_errors(uri):
        entity = api.get_experiment_by_name(experiment)
        return find_run(api, entity.experiment_id, name) if entity else None

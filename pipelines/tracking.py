"""MLflow runs: plain functions that take the tracking uri and the run id, and keep no state of their own.

One training run is one MLflow run, however often its processes die: the driver opens it by name (``open_run``), rank 0
writes to it (``RunLog``), and the driver closes it (``finish_run``).
"""

import fcntl
import getpass
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from denoise.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_TAG = "denoise.run"  # the logical name of a run: what open_run finds it by
CREATE_TAG = "denoise.create"  # one value for each attempt to create a run
DIGEST_LENGTH = 36  # MLflow's limit for the digest of a data set
PARAM_LENGTH = 6000  # and for the value of a parameter

# MLflow reads its settings from the environment only, and some when it is imported. What the user has set wins.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # else every new database prints some fifty lines
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 14 s; its own default of 7 blocks for 4 minutes
}


class DataUse(NamedTuple):
    """A set of pictures that a run has seen."""

    name: str
    context: str  # "train", "val" or "test"
    digest: str  # of the data, hex
    source: str  # where it was read from


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
    """Return the folder where an embedded (sqlite) MLflow keeps pictures and models, None for any other."""
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
        UserError: MLflow does not answer there, or the database cannot be opened.
    """
    check_answers(uri)
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import mlflow

    try:
        with locked(uri):
            _create_database(uri)
            return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:  # whatever the database driver raises
        raise UserError(f"MLflow cannot open {shown(uri)}: {first_line(error)}.") from error


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
    """Raise a UserError, within 3 s, if an MLflow server does not answer; other uris always pass."""
    if not uri.startswith("http"):
        return
    import requests

    try:
        requests.get(f"{uri}/health", timeout=3).raise_for_status()
    except requests.RequestException as error:
        raise UserError(
            f"MLflow at {shown(uri)} does not answer ({type(error).__name__}): start it, or set "
            "tracking.uri=sqlite:///mlflow.db."
        ) from None


@contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one sentence."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(f"MLflow at {shown(uri)} failed: {first_line(error)}.") from error


def shown(uri: str) -> str:
    """Return the uri without the password that it may hold."""
    return re.sub(r"//[^@/]*@", "//***@", uri)


def user() -> str:
    """Return the name of who runs this process, for the records."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type, without the full stop."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".")


def open_run(
    uri: str,
    experiment: str,
    name: str,
    *,
    tags: Mapping[str, object] | None = None,
    params: Mapping[str, object] | None = None,
    datasets: Sequence[DataUse | tuple[str, str, str, str]] = (),
) -> str:
    """Return the id of the MLflow run called ``name`` in ``experiment``: the one that exists, or a new one.

    The run is looked up by its tag ``denoise.run``, so that a relaunch goes on in the run of the first launch, which
    is set to RUNNING again. Its tags, parameters and data sets stay what they were first; a parameter that differs
    now is noted in the tag ``denoise.changed_params``.

    Args:
        uri: absolute tracking uri (``resolve_uri``).
        experiment: MLflow experiment, created if need be.
        name: name of the run.
        tags: git commit, method, noise, ...
        params: flat, with dotted keys; values longer than MLflow's 6000 characters are cut.
        datasets: logged as inputs; MLflow shows the first 36 characters of the digest, a run tag
            ``denoise.data.CONTEXT.NAME`` holds all of it.
    """
    api = client(uri)
    with plain_errors(uri), locked(uri):
        experiment_id = _experiment_id(api, uri, experiment)
        run = _find_run(api, experiment_id, name) or _create_run(api, experiment_id, name)
        run_id: str = run.info.run_id
        _add_texts(api, run, tags or {}, params or {}, [DataUse(*use) for use in datasets])
        api.update_run(run_id, status="RUNNING")
    return run_id


def finish_run(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Give the run its final status."""
    api = client(uri)
    with plain_errors(uri):
        api.set_terminated(run_id, status=status)


def run_of_model(uri: str, experiment: str, name: str) -> str:
    """Return the id of the run called ``name``, which a model's card says it comes from.

    Raises:
        UserError: this MLflow has no such run.
    """
    api = client(uri)
    with plain_errors(uri):
        found = api.get_experiment_by_name(experiment)
        run = _find_run(api, found.experiment_id, name) if found else None
    if run is None:
        raise UserError(f"MLflow at {shown(uri)} has no run {name}; train the model with this tracking.uri first.")
    run_id: str = run.info.run_id
    return run_id


def _experiment_id(api: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = api.get_experiment_by_name(name)
    if found is None:
        root = artifact_root(uri)
        location = root.as_uri() if root else None  # a server decides by itself where pictures and models go
        try:
            return str(api.create_experiment(name, location))
        except MlflowException:
            found = api.get_experiment_by_name(name)  # somebody else was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name} has been deleted: set tracking.experiment to another name, or bring it "
            f"back with `mlflow experiments restore --experiment-id {found.experiment_id}`."
        )
    if artifact_root(uri) and found.artifact_location.startswith("mlflow-artifacts:"):
        raise UserError(
            f"the MLflow experiment {name} was created through a server, which keeps its files: set tracking.uri to "
            "the server's address, or tracking.experiment to another name."
        )
    return str(found.experiment_id)


def _find_run(api: "MlflowClient", experiment_id: str, name: str) -> "Run | None":
    quote = '"' if "'" in name else "'"
    query = f"tags.`{RUN_TAG}` = {quote}{name}{quote}"
    found = api.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"], max_results=1)
    return found[0] if found else None


def _create_run(api: "MlflowClient", experiment_id: str, name: str) -> "Run":
    """Create a run, once: a request that the client repeated can have made a second one, which is deleted again."""
    attempt = uuid.uuid4().hex
    tags = {RUN_TAG: name, CREATE_TAG: attempt, "mlflow.user": user()}
    run = api.create_run(experiment_id, run_name=name, tags=tags)
    for ghost in api.search_runs([experiment_id], f"tags.`{CREATE_TAG}` = '{attempt}'"):
        if ghost.info.run_id != run.info.run_id:
            api.delete_run(ghost.info.run_id)
    return run


def _add_texts(
    api: "MlflowClient",
    run: "Run",
    tags: Mapping[str, object],
    params: Mapping[str, object],
    datasets: Iterable[DataUse],
) -> None:
    """Log the tags, parameters and data sets that the run does not have yet."""
    from mlflow.entities import Param, RunTag

    texts = {key: _param_text(value) for key, value in params.items()}
    known = run.data.params
    wanted = {key: str(value) for key, value in tags.items()}
    wanted |= {f"denoise.data.{use.context}.{use.name}": use.digest for use in datasets}
    new = [RunTag(key, value) for key, value in wanted.items() if key not in run.data.tags]
    changed = {key: [known[key], text] for key, text in texts.items() if key in known and known[key] != text}
    if changed:
        new.append(RunTag("denoise.changed_params", json.dumps(changed)))
    missing = [Param(key, text) for key, text in texts.items() if key not in known]
    api.log_batch(run.info.run_id, params=missing, tags=new)
    _add_datasets(api, run, datasets)


def _add_datasets(api: "MlflowClient", run: "Run", datasets: Iterable[DataUse]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = {(entry.dataset.name, entry.dataset.digest) for entry in (run.inputs.dataset_inputs if run.inputs else [])}
    inputs = [
        DatasetInput(
            Dataset(use.name, use.digest[:DIGEST_LENGTH], "local", json.dumps({"uri": use.source})),
            [InputTag("mlflow.data.context", use.context)],
        )
        for use in datasets
        if (use.name, use.digest[:DIGEST_LENGTH]) not in known
    ]
    if inputs:
        api.log_inputs(run.info.run_id, datasets=inputs)


def _param_text(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 3] + "..."

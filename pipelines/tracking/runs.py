"""The opening of MLflow runs: a run is found by its logical name or created, and runs whose process died are closed."""

import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import UserError
from pipelines.tracking.client import RUN_TAG, artifact_root, client, find_run, locked, plain_errors, user
from pipelines.tracking.owner import has_died, this_process

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CREATE_TAG = "denoise.create"  # one value for each attempt to create a run
DRIVER_TAG = "denoise.driver"  # the process that drives the run now
DIGEST_LENGTH = 36  # MLflow's limit for the digest of a data set
PARAM_LENGTH = 6000  # and for the value of a parameter


class DataUse(NamedTuple):
    """A set of images that a run has seen."""

    name: str
    context: str  # "train", "val" or "test"
    digest: str  # of the data, hex
    source: str  # where it was read from


@dataclass(frozen=True)
class RunSpec:
    """All that opens an MLflow run, as plain data: any process can do it, at any time."""

    uri: str  # absolute tracking uri (resolve_uri)
    experiment: str  # created if need be
    name: str  # the logical name of the run
    tags: Mapping[str, object] = field(default_factory=dict)  # git commit, method, noise, ...
    params: Mapping[str, object] = field(default_factory=dict)  # flat, with dotted keys; cut after 6000 characters
    datasets: tuple[DataUse, ...] = ()  # inputs; MLflow shows 36 characters of a digest, a tag holds all of it
    driver: str = ""  # the process that drives the run (this_driver), where it is known
    started: int = 0  # when that began, in milliseconds since the epoch; 0: when the run is created

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data for JSON: values as the texts that MLflow shows."""
        return {
            **vars(self),
            "tags": {key: str(value) for key, value in self.tags.items()},
            "params": {key: _param_text(value) for key, value in self.params.items()},
            "datasets": [list(use) for use in self.datasets],
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "RunSpec":
        """Return what ``as_dict`` wrote down."""
        return cls(**{**tree, "datasets": tuple(DataUse(*use) for use in tree["datasets"])})


def get_or_create_run(spec: RunSpec, driving: bool = True) -> str:
    """Return the id of the MLflow run of that name in its experiment, set to RUNNING: the one there is, or a new one.

    The run is looked up by its tag ``denoise.run``, so that a relaunch goes on in the run of the first launch. Its
    tags, parameters and data sets stay what they were first; a parameter that differs now is noted in the tag
    ``denoise.changed_params``, and the tag ``denoise.driver`` names the process that drives the run now.

    Args:
        spec: what the run is called and what it holds from the start.
        driving: whether this process drives the run. If so, the other runs of the experiment that are RUNNING
            although the process on this host that drove them is gone are set to KILLED: it had no time to do so.
            If not, the driver is who ``spec`` names.
    """
    api = client(spec.uri)
    with plain_errors(spec.uri), locked(spec.uri):
        run = _ensured(api, spec, this_process() if driving else spec.driver)
        api.update_run(run.info.run_id, status="RUNNING")
        if driving:
            _reap(api, run)
    run_id: str = run.info.run_id
    return run_id


def ensure_run(spec: RunSpec) -> "Run":
    """Return the MLflow run as ``get_or_create_run`` does, but leave its status as it is."""
    api = client(spec.uri)
    with plain_errors(spec.uri), locked(spec.uri):
        return _ensured(api, spec, spec.driver)


def _ensured(api: "MlflowClient", spec: RunSpec, driver: str) -> "Run":
    experiment_id = _experiment_id(api, spec.uri, spec.experiment)
    run = find_run(api, experiment_id, spec.name) or _create_run(api, experiment_id, spec)
    if driver and run.data.tags.get(DRIVER_TAG) != driver:
        api.set_tag(run.info.run_id, DRIVER_TAG, driver)
    _add_texts(api, run, spec)
    return run


def _reap(api: "MlflowClient", opened: "Run") -> None:
    """Set to KILLED every other run of the experiment whose driver, on this host, died without a word."""
    from mlflow.exceptions import MlflowException

    for run in api.search_runs([opened.info.experiment_id], "attributes.status = 'RUNNING'"):
        if run.info.run_id != opened.info.run_id and has_died(run.data.tags.get(DRIVER_TAG, "")):
            with suppress(MlflowException):  # somebody may have deleted it meanwhile
                api.set_terminated(run.info.run_id, status="KILLED")


def _experiment_id(api: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = api.get_experiment_by_name(name)
    if found is None:
        root = artifact_root(uri)
        location = root.as_uri() if root else None  # a server decides by itself where images and models go
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


def _create_run(api: "MlflowClient", experiment_id: str, spec: RunSpec) -> "Run":
    """Create a run, once: a request that the client repeated can have made a second one, which is deleted again."""
    attempt = uuid.uuid4().hex
    tags = {RUN_TAG: spec.name, CREATE_TAG: attempt, "mlflow.user": user()}
    run = api.create_run(experiment_id, start_time=spec.started or None, run_name=spec.name, tags=tags)
    for ghost in api.search_runs([experiment_id], f"tags.`{CREATE_TAG}` = '{attempt}'"):
        if ghost.info.run_id != run.info.run_id:
            api.delete_run(ghost.info.run_id)
    first = find_run(api, experiment_id, spec.name) or run
    if first.info.run_id != run.info.run_id:  # another machine was faster
        api.delete_run(run.info.run_id)
    return first


def _add_texts(api: "MlflowClient", run: "Run", spec: RunSpec) -> None:
    """Log the tags, parameters and data sets that the run does not have yet."""
    from mlflow.entities import Param, RunTag

    texts = {key: _param_text(value) for key, value in spec.params.items()}
    known = run.data.params
    wanted = {key: str(value) for key, value in spec.tags.items()}
    wanted |= {f"denoise.data.{use.context}.{use.name}": use.digest for use in spec.datasets}
    new = [RunTag(key, value) for key, value in wanted.items() if key not in run.data.tags]
    changed = {key: [known[key], text] for key, text in texts.items() if key in known and known[key] != text}
    if changed:
        new.append(RunTag("denoise.changed_params", json.dumps(changed)))
    missing = [Param(key, text) for key, text in texts.items() if key not in known]
    api.log_batch(run.info.run_id, params=missing, tags=new)
    _add_datasets(api, run, spec.datasets)


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

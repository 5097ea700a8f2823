"""The definition of a run, and its MLflow run: found by name or created; runs whose owner died are set to KILLED."""

import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import UserError
from denoise.redaction import redacted, without_passwords
from pipelines.tracking.client import RUN_TAG, artifact_root, client, database_lock, find_run, plain_errors, user
from pipelines.tracking.owner import has_died, this_process

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CREATE_TAG = "denoise.create"  # another value for each attempt to create a run
# The process that owns the run now. The value is persisted in MLflow, hence the older word.
OWNER_TAG = "denoise.driver"
MAX_DIGEST_LENGTH = 36  # MLflow's limit for the digest of a data set
MAX_PARAM_LENGTH = 6000  # MLflow's limit for the value of a parameter


class DataUse(NamedTuple):
    """A data set that a run reads."""

    name: str
    context: str  # "train", "val" or "test"
    digest: str  # of the data, hex
    source: str  # path or address that it is read from


@dataclass(frozen=True)
class RunSpec:
    """The definition of an MLflow run as plain data, from which any process can create the run at any time."""

    uri: str  # absolute tracking uri (resolve_uri)
    experiment: str  # created if it does not exist
    name: str  # the logical name of the run
    tags: Mapping[str, object] = field(default_factory=dict)  # git commit, method, noise, ...
    params: Mapping[str, object] = field(default_factory=dict)  # flat, with dotted keys; cut after 6000 characters
    datasets: tuple[DataUse, ...] = ()  # inputs; MLflow shows 36 characters of a digest, a tag holds all of it
    owner: str = ""  # the process that drives the run (this_process), where it is known; "driver" on disk
    started: int = 0  # start time in milliseconds since the epoch; 0: the time at which MLflow creates the run

    def as_dict(self) -> dict[str, Any]:
        """Return the definition as JSON data, with tags and parameters as the strings that MLflow shows.

        It holds no passwords of addresses.
        """
        return {
            **{"driver" if key == "owner" else key: value for key, value in vars(self).items()},
            "uri": without_passwords(self.uri),
            "tags": {key: str(value) for key, value in self.tags.items()},
            "params": {key: _param_text(value) for key, value in self.params.items()},
            "datasets": redacted(self.datasets),
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "RunSpec":
        """Return the definition that ``as_dict`` returned as ``tree``."""
        fields = {"owner" if key == "driver" else key: value for key, value in tree.items()}
        return cls(**{**fields, "datasets": tuple(DataUse(*use) for use in tree["datasets"])})


def get_or_create_run(spec: RunSpec, as_owner: bool = True) -> str:
    """Find the MLflow run of that name in its experiment, or create it; set it to RUNNING and return its id.

    The run is looked up by its tag ``denoise.run``, so that a relaunch continues the run of the first launch. Its
    tags, parameters and data sets keep their first values; a parameter that differs now is recorded in the tag
    ``denoise.changed_params``, and the tag ``denoise.driver`` names the process that owns the run now.

    Args:
        spec: the definition of the run.
        as_owner: whether this process becomes the owner of the run. If so, the other RUNNING runs of the experiment
            whose owner, a process on this host, has died are set to KILLED. If not, the owner is the one in ``spec``.
    """
    api = client(spec.uri)
    with plain_errors(spec.uri), database_lock(spec.uri):
        run = _find_or_create(api, spec, this_process() if as_owner else spec.owner)
        api.update_run(run.info.run_id, status="RUNNING")
        if as_owner:
            _kill_abandoned_runs(api, run)
    run_id: str = run.info.run_id
    return run_id


def ensure_run(spec: RunSpec) -> "Run":
    """Find or create the MLflow run as ``get_or_create_run`` does, but do not change its status."""
    api = client(spec.uri)
    with plain_errors(spec.uri), database_lock(spec.uri):
        return _find_or_create(api, spec, spec.owner)


def _find_or_create(api: "MlflowClient", spec: RunSpec, owner: str) -> "Run":
    experiment_id = _experiment_id(api, spec.uri, spec.experiment)
    run = find_run(api, experiment_id, spec.name) or _create_run(api, experiment_id, spec)
    if owner and run.data.tags.get(OWNER_TAG) != owner:
        api.set_tag(run.info.run_id, OWNER_TAG, owner)
    _add_metadata(api, run, spec)
    return run


def _kill_abandoned_runs(api: "MlflowClient", own_run: "Run") -> None:
    """Set to KILLED every other RUNNING run of the experiment whose owner, a process on this host, has died."""
    from mlflow.exceptions import MlflowException

    for run in api.search_runs([own_run.info.experiment_id], "attributes.status = 'RUNNING'"):
        if run.info.run_id != own_run.info.run_id and has_died(run.data.tags.get(OWNER_TAG, "")):
            with suppress(MlflowException):  # another process may have deleted it meanwhile
                api.set_terminated(run.info.run_id, status="KILLED")


def _experiment_id(api: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = api.get_experiment_by_name(name)
    if experiment is None:
        root = artifact_root(uri)
        location = root.as_uri() if root else None  # a server chooses the location of images and models itself
        try:
            return str(api.create_experiment(name, location))
        except MlflowException:
            experiment = api.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name} has been deleted: set tracking.experiment to another name, or bring it "
            f"back with `mlflow experiments restore --experiment-id {experiment.experiment_id}`."
        )
    if artifact_root(uri) and experiment.artifact_location.startswith("mlflow-artifacts:"):
        raise UserError(
            f"the MLflow experiment {name} was created through a server, which stores its files: set tracking.uri to "
            "the server's address, or tracking.experiment to another name."
        )
    return str(experiment.experiment_id)


def _create_run(api: "MlflowClient", experiment_id: str, spec: RunSpec) -> "Run":
    """Create a run, exactly once: a duplicate, made by a request that the client repeated, is deleted again."""
    attempt = uuid.uuid4().hex
    tags = {RUN_TAG: spec.name, CREATE_TAG: attempt, "mlflow.user": user()}
    run = api.create_run(experiment_id, start_time=spec.started or None, run_name=spec.name, tags=tags)
    for duplicate in api.search_runs([experiment_id], f"tags.`{CREATE_TAG}` = '{attempt}'"):
        if duplicate.info.run_id != run.info.run_id:
            api.delete_run(duplicate.info.run_id)
    first = find_run(api, experiment_id, spec.name) or run
    if first.info.run_id != run.info.run_id:  # another machine was faster
        api.delete_run(run.info.run_id)
    return first


def _add_metadata(api: "MlflowClient", run: "Run", spec: RunSpec) -> None:
    """Log the tags, parameters and data sets that the run does not have yet."""
    from mlflow.entities import Param, RunTag

    params = {key: _param_text(value) for key, value in spec.params.items()}
    known = redacted(run.data.params)
    tags = {key: str(value) for key, value in spec.tags.items()}
    tags |= {f"denoise.data.{use.context}.{use.name}": use.digest for use in spec.datasets}
    new_tags = [RunTag(key, value) for key, value in tags.items() if key not in run.data.tags]
    changed = {key: [known[key], text] for key, text in params.items() if key in known and known[key] != text}
    if changed:
        new_tags.append(RunTag("denoise.changed_params", json.dumps(changed)))
    new_params = [Param(key, text) for key, text in params.items() if key not in known]
    api.log_batch(run.info.run_id, params=new_params, tags=new_tags)
    _add_datasets(api, run, spec.datasets)


def _add_datasets(api: "MlflowClient", run: "Run", datasets: Iterable[DataUse]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = {(entry.dataset.name, entry.dataset.digest) for entry in (run.inputs.dataset_inputs if run.inputs else [])}
    inputs = [
        DatasetInput(
            Dataset(use.name, use.digest[:MAX_DIGEST_LENGTH], "local", json.dumps(redacted({"uri": use.source}))),
            [InputTag("mlflow.data.context", use.context)],
        )
        for use in datasets
        if (use.name, use.digest[:MAX_DIGEST_LENGTH]) not in known
    ]
    if inputs:
        api.log_inputs(run.info.run_id, datasets=inputs)


def _param_text(value: object) -> str:
    text = without_passwords(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 3] + "..."

"""The model registry: register, list and show versions with their scores, and fetch a model by reference.

A denoiser is registered under the noise it was trained for (``denoise-gauss25``); a version is one trained model.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError
from pipelines.registry.rows import (
    NAME_PREFIX,
    PROTOCOL_KEYS,
    SCORE_KEYS,
    SOURCE_PREFIX,
    Row,
    champion_of,
    model_names,
    model_versions,
    read_moves,
    read_rows,
    require_alias,
    require_rows,
    require_version,
)
from pipelines.tracking.client import client, database_lock, plain_errors
from pipelines.tracking.model import (
    DIGEST_TAG,
    MODEL_FILES,
    denoiser_folder,
    find_logged_model,
    logged_model_folder,
    model_digest,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def register(uri: str, model_folder: Path, scores: Mapping[str, Any] | None, run_id: str) -> Row:
    """Register a run's logged model as a new version and return its row.

    The same files are not registered twice: their version gets the new scores and is returned.

    Args:
        uri: absolute tracking uri.
        model_folder: the model that ``log_model`` logged.
        scores: from an evaluation (method, noise, data, protocol, psnr, ...), None if there was none.
        run_id: the run that logged the model.

    Raises:
        UserError: the run has not logged this model.
    """
    digest = model_digest(model_folder)
    card = json.loads((model_folder / MODEL_FILES[0]).read_text(encoding="utf-8"))
    name = NAME_PREFIX + str(card["noise"])
    tags = {key: str(scores[key]) for key in (*SCORE_KEYS, *PROTOCOL_KEYS) if scores and key in scores}
    tags |= {"method": card["method"]["name"], "noise": card["noise"], DIGEST_TAG: digest, "run": run_id}
    api = client(uri)
    with plain_errors(uri), database_lock(uri):
        _create_model(api, name, str(card["noise"]))
        versions = model_versions(api, name)
        registered = next((version for version in versions if version.tags.get(DIGEST_TAG) == digest), None)
        version = registered or _create_version(api, name, run_id, model_folder, digest)
        for key, value in tags.items():
            api.set_model_version_tag(name, str(version.version), key, value)
        row = next(row for row in read_rows(api, name) if row["version"] == str(version.version))
        api.update_model_version(name, row["version"], _description(row, card))
    return row


def list_models(uri: str) -> list[Row]:
    """Return every version of every denoiser: name, version, aliases, method, scores, protocol, run, date."""
    api = client(uri)
    with plain_errors(uri):
        return [row for name in model_names(api) for row in read_rows(api, name)]


def show(uri: str, name: str) -> dict[str, Any]:
    """Return a registered model: its versions, its champion and every move of the champion, oldest first."""
    api = client(uri)
    with plain_errors(uri):
        rows = require_rows(api, name)
        champion = champion_of(rows)
        return {
            "name": name,
            "champion": champion["version"] if champion else None,
            "versions": rows,
            "moves": read_moves(api, name),
        }


def model_folder(uri: str, reference: str, cache: Path | None = None) -> Path:
    """Return the local model folder (model.json, net.safetensors) of a path, ``models:/NAME@ALIAS`` or ``.../VERSION``.

    Models on a server are downloaded once, into ``cache`` (``~/.cache/denoise/models``), and checked against the
    registered sha256.

    Raises:
        UserError: no such folder, name, alias or version, or files that differ from the registered ones.
    """
    if not reference.startswith(SOURCE_PREFIX):
        return _local_folder(Path(reference))
    match = REFERENCE.fullmatch(reference)
    if not match:
        raise UserError(f"{reference} is no model: write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, number = match["name"], match["alias"], match["version"]
    api = client(uri)
    with plain_errors(uri):
        rows = require_rows(api, name)
        row = require_version(name, rows, number) if number else require_alias(name, rows, alias)
        root = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "denoise" / "models"
        return _verified_folder(uri, api, row, root)


def _create_model(api: "MlflowClient", name: str, noise: str) -> None:
    from mlflow.exceptions import MlflowException

    if name in model_names(api):
        return
    try:
        api.create_registered_model(name, description=f"Denoisers for the noise `{noise}`.")
    except MlflowException:  # another process was faster
        api.get_registered_model(name)


def _create_version(api: "MlflowClient", name: str, run_id: str, folder: Path, digest: str) -> "ModelVersion":
    run = api.get_run(run_id)
    logged = find_logged_model(api, run, digest)
    if logged is None:
        raise UserError(f"run {run_id} has not logged the model in {folder}: train it again, or name its own run.")
    with _default_uri(api.tracking_uri):
        version = api.create_model_version(name, f"{SOURCE_PREFIX}{logged.model_id}", run_id, model_id=logged.model_id)
    _link_version(api, logged, name, version)
    return version


@contextmanager
def _default_uri(uri: str) -> Iterator[None]:
    """Set the process's tracking uri, by which MLflow resolves models:/m-..., whichever client is used."""
    key = "MLFLOW_TRACKING_URI"
    previous = os.environ.get(key)
    os.environ[key] = uri
    try:
        yield
    finally:
        if previous is None:
            del os.environ[key]
        else:
            os.environ[key] = previous


def _link_version(api: "MlflowClient", logged: "LoggedModel", name: str, version: "ModelVersion") -> None:
    """Show the registered version on the page of the logged model; a server has done this already."""
    key = "mlflow.modelVersions"
    known = json.loads(api.get_logged_model(logged.model_id).tags.get(key, "[]"))
    if not any(entry["name"] == name and str(entry["version"]) == str(version.version) for entry in known):
        entries = [*known, {"name": name, "version": version.version}]
        api.set_logged_model_tags(logged.model_id, {key: json.dumps(entries)})


def _local_folder(folder: Path) -> Path:
    if (folder / MODEL_FILES[0]).is_file():
        return folder
    inside = folder / "model"
    hint = f"; did you mean {inside}?" if (inside / MODEL_FILES[0]).is_file() else "."
    raise UserError(f"{folder} is no model folder (it has no {MODEL_FILES[0]}){hint}")


def _verified_folder(uri: str, api: "MlflowClient", row: Row, cache: Path) -> Path:
    """Return the model folder of a version, after comparing its sha256."""
    cached = cache / str(row["model_id"])
    if _is_registered(cached, row):
        return denoiser_folder(cached)
    shutil.rmtree(cached, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        root = logged_model_folder(uri, api.get_logged_model(row["model_id"]), Path(work) / "model")
        if not _is_registered(root, row):
            raise UserError(
                f"the files of {row['name']} version {row['version']} are not the registered ones (sha256): "
                "they were changed or damaged; register the model again."
            )
        if Path(work) not in root.parents:
            return denoiser_folder(root)  # in place, beside a sqlite database
        with suppress(OSError):  # another process was faster
            root.replace(cached)
    return denoiser_folder(cached)


def _is_registered(root: Path, row: Row) -> bool:
    try:
        return model_digest(denoiser_folder(root)) == str(row[DIGEST_TAG])
    except UserError:
        return False


def _description(row: Row, card: Mapping[str, Any]) -> str:
    """Return the model card of a version, in markdown."""
    lines = [f"**{row['method']}** for `{row['noise']}`, {'colour' if card['channels'] == 3 else 'grey'} images.", ""]
    if row["psnr"] is not None:
        lines += ["| | noisy | restored |", "|---|---|---|"]
        lines += [f"| PSNR (dB) | {_format_score(row['noisy_psnr'])} | {_format_score(row['psnr'])} |"]
        lines += [f"| SSIM | {_format_score(row['noisy_ssim'])} | {_format_score(row['ssim'])} |"]
        lines += ["", f"On `{row['data']}` under the protocol `{row['protocol']}`."]
    else:
        lines += ["Not evaluated yet."]
    lines += ["", *(f"- {key}: {_format_entry(value)}" for key, value in card.get("provenance", {}).items())]
    use = f"denoise restore noisy.png -o restored --model models:/{row['name']}/{row['version']}"
    lines += [f"- MLflow run: {row['run_id']}", f"- sha256: {row[DIGEST_TAG]}", "", "```", use, "```"]
    return "\n".join(lines)


def _format_entry(value: object) -> str:
    """Return a value of the card's provenance on one line; a list of dicts becomes ``samples train 0a1b...; ...``."""
    entries = value if isinstance(value, list) else [value]
    return "; ".join(
        " ".join(map(str, entry.values())) if isinstance(entry, Mapping) else str(entry) for entry in entries
    )


def _format_score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"

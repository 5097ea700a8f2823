"""The model registry: register, list and show versions with their scores, and fetch a model by reference.

A denoiser is registered under the noise it was trained for (``denoise-gauss25``); a version is one trained model.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError
from denoise.files import write_folder
from denoise.model_files import CARD
from pipelines.registry.moves import read_trail
from pipelines.registry.rows import (
    NAME_PREFIX,
    SOURCE_PREFIX,
    Row,
    champion_of,
    logged_model_id,
    model_names,
    model_versions,
    read_rows,
    require_alias,
    require_rows,
    require_version,
)
from pipelines.registry.scores import check_scores
from pipelines.registry.verified import changed, verified_folder
from pipelines.tracking.client import client, database_lock, plain_errors
from pipelines.tracking.model import (
    DIGEST_TAG,
    FOLDER_TAG,
    copy_logged_model,
    denoiser_folder,
    find_logged_model,
    folder_digest,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def register(uri: str, model_folder: Path, scores: Mapping[str, Any] | None, run_id: str) -> Row:
    """Register a run's logged model as a new version and return its row.

    The same files are not registered twice: their version gets the new scores and is returned. Only where that version
    was logged without the digest of its code, and the run has logged the model again, there is a second one.

    Args:
        uri: absolute tracking uri.
        model_folder: the model that ``log_model`` logged.
        scores: what ``evaluate`` returned for this model, None if there was no evaluation.
        run_id: the run that logged the model.

    Raises:
        UserError: the run has not logged this model, the model is damaged, or the scores are not of this model.
    """
    from denoise.denoiser import load_denoiser

    denoiser = load_denoiser(model_folder)
    scored = check_scores(scores, denoiser).tags(denoiser) if scores is not None else {}
    name, digest = NAME_PREFIX + denoiser.noise, str(denoiser.digest)
    tags = {"method": denoiser.name, "noise": denoiser.noise, DIGEST_TAG: digest, "run": run_id}
    api = client(uri)
    with plain_errors(uri), database_lock(uri):
        _create_model(api, name, denoiser.noise)
        same = [version for version in model_versions(api, name) if _is_of(version, digest)]
        if not any(FOLDER_TAG in version.tags for version in same):
            same += _create_version(api, name, run_id, digest, tags)
        if not same:
            raise UserError(
                f"run {run_id} has not logged the model in {model_folder}: train it again, or name its own run."
            )
        numbers = [str(version.version) for version in same]
        for number in numbers:
            _set_scores(api, name, number, scored)
        rows = [row for row in read_rows(api, name) if row["version"] in numbers]
        for row in rows:
            api.update_model_version(name, row["version"], _description(row, denoiser.card))
    return rows[-1]


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
            "moves": read_trail(api, name).moves,
        }


def model_folder(uri: str, reference: str, cache: Path | None = None) -> Path:
    """Return the local model folder (model.json, net.safetensors) of a path, ``models:/NAME@ALIAS`` or ``.../VERSION``.

    Models on a server are downloaded once, into ``cache`` (``~/.cache/denoise/models``), and checked against the
    registered sha256.

    Raises:
        UserError: no such folder, name, alias or version, files that differ from the registered ones, or a version
            that was not registered by denoise.
    """
    if not reference.startswith(SOURCE_PREFIX):
        return _local_folder(Path(reference))
    api = client(uri)
    with plain_errors(uri):
        return denoiser_folder(verified_folder(uri, api, _referenced(api, reference), cache or _default_cache()))


def fetch_model(uri: str, reference: str, out: Path, cache: Path | None = None) -> Row:
    """Copy the MLflow model of a version, with the code that MLflow runs to load it, and return its row.

    The copy itself is compared with the digest of all files, so that no other code can be in it.

    Args:
        uri: absolute tracking uri.
        reference: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        out: a folder that does not exist, or holds this very model.
        cache: as for ``model_folder``.

    Raises:
        UserError: as for ``model_folder``; ``out`` holds something else; or the digest of the code is not known.
    """
    api = client(uri)
    with plain_errors(uri):
        row = _referenced(api, reference)
        if row[FOLDER_TAG] is None:
            raise UserError(
                f"{row['name']} version {row['version']} was registered without a digest of its code, which cannot be "
                "checked; train and register the model again, or use `denoise restore`, which runs no code of a model."
            )
        if out.is_dir() and folder_digest(out) == row[FOLDER_TAG]:
            return row
        if out.exists():
            raise UserError(f"{out} exists and is not this model; give the name of a new folder with --out.")
        root = verified_folder(uri, api, row, cache or _default_cache())

    def write(work: Path) -> None:
        copy_logged_model(root, work)
        if folder_digest(work) != row[FOLDER_TAG]:
            raise changed(row)

    write_folder(out, write)
    return row


def _create_model(api: "MlflowClient", name: str, noise: str) -> None:
    from mlflow.exceptions import MlflowException

    if name in model_names(api):
        return
    try:
        api.create_registered_model(name, description=f"Denoisers for the noise `{noise}`.")
    except MlflowException:  # another process was faster
        api.get_registered_model(name)


def _is_of(version: "ModelVersion", digest: str) -> bool:
    """Return whether a version is of the model with that sha256, and was made by denoise."""
    return version.tags.get(DIGEST_TAG) == digest and logged_model_id(version) is not None


def _create_version(
    api: "MlflowClient", name: str, run_id: str, digest: str, tags: Mapping[str, str]
) -> "list[ModelVersion]":
    """Register the model that a run has logged, if it has, and return its version."""
    logged = find_logged_model(api, api.get_run(run_id), digest)
    if logged is None:
        return []
    source = f"{SOURCE_PREFIX}{logged.model_id}"
    tags = {**tags, FOLDER_TAG: logged.tags[FOLDER_TAG]}
    with _default_uri(api.tracking_uri):
        version = api.create_model_version(name, source, run_id, tags, model_id=logged.model_id)
    _link_version(api, logged, name, version)
    return [version]


def _set_scores(api: "MlflowClient", name: str, version: str, tags: Mapping[str, str]) -> None:
    """Replace the scores of a version; ``psnr`` goes first and comes last, as without it there is no score."""
    if not tags:
        return
    if "psnr" in api.get_model_version(name, version).tags:
        api.delete_model_version_tag(name, version, "psnr")
    for key in sorted(tags, key=lambda key: key == "psnr"):
        api.set_model_version_tag(name, version, key, tags[key])


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


def _referenced(api: "MlflowClient", reference: str) -> Row:
    match = REFERENCE.fullmatch(reference)
    if not match:
        raise UserError(f"{reference} is no model: write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, number = match["name"], match["alias"], match["version"]
    rows = require_rows(api, name)
    return require_version(name, rows, number) if number else require_alias(name, rows, alias)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "denoise" / "models"


def _local_folder(folder: Path) -> Path:
    if (folder / CARD).is_file():
        return folder
    inside = folder / "model"
    hint = f"; did you mean {inside}?" if (inside / CARD).is_file() else "."
    raise UserError(f"{folder} is no model folder (it has no {CARD}){hint}")


def _description(row: Row, card: Mapping[str, Any]) -> str:
    """Return the model card of a version, in markdown."""
    lines = [f"**{row['method']}** for `{row['noise']}`, {'colour' if card['channels'] == 3 else 'grey'} images.", ""]
    if row["psnr"] is not None:
        lines += ["| | noisy | restored |", "|---|---|---|"]
        lines += [f"| PSNR (dB) | {_format_score(row['noisy_psnr'])} | {_format_score(row['psnr'])} |"]
        lines += [f"| SSIM | {_format_score(row['noisy_ssim'])} | {_format_score(row['ssim'])} |"]
        lines += [
            "",
            f"On `{row['data']}` with the noise `{row['scored_noise']}`, under the protocol `{row['protocol']}`.",
        ]
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

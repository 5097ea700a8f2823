"""The model registry: versions with their scores, and models by reference.

A denoiser is registered under the noise it was trained for (``denoise-gauss25``), a version is one trained model.
"""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError, nearest
from pipelines.tracking.client import client, locked, plain_errors
from pipelines.tracking.model import (
    DIGEST_TAG,
    MODEL_FILES,
    denoiser_in,
    find_logged_model,
    logged_folder,
    model_digest,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "denoise-"
SOURCE = "models:/"  # of a version: models:/ and the id of the logged model, which the page links to
CHAMPION, CHALLENGER = "champion", "challenger"
AUDIT = "promotion."  # tags of the registered model: promotion.0001, promotion.0002, ...
FIGURES = ("noisy_psnr", "psnr", "noisy_ssim", "ssim")
SETTING = ("protocol", "data", "data_digest")  # scores compare only where these are equal
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")

Row = dict[str, Any]  # one version, as --json shows it


def register(uri: str, model_folder: Path, scores: Mapping[str, Any] | None, run_id: str) -> Row:
    """Register the run's logged model of that folder as a new version and return the version.

    A version of the same files is not registered twice: it is returned, with the new scores.

    Args:
        uri: absolute tracking uri.
        model_folder: the model as ``log_model`` logged it.
        scores: what an evaluation wrote (method, noise, data, protocol, psnr, ...), None without one.
        run_id: the run that logged the model.
    """
    digest = model_digest(model_folder)
    card = json.loads((model_folder / MODEL_FILES[0]).read_text(encoding="utf-8"))
    name = PREFIX + str(card["noise"])
    tags = {key: str(scores[key]) for key in (*FIGURES, *SETTING) if scores and key in scores}
    tags |= {"method": card["method"]["name"], "noise": card["noise"], DIGEST_TAG: digest, "run": run_id}
    api = client(uri)
    with plain_errors(uri), locked(uri):
        _create_model(api, name, str(card["noise"]))
        found = next((version for version in _versions(api, name) if version.tags.get(DIGEST_TAG) == digest), None)
        version = found or _create_version(api, name, run_id, model_folder, digest)
        for key, value in tags.items():
            api.set_model_version_tag(name, str(version.version), key, value)
        row = next(row for row in versions_of(api, name) if row["version"] == str(version.version))
        api.update_model_version(name, row["version"], _describe(row, card))
    return row


def list_models(uri: str) -> list[Row]:
    """Return every version of every denoiser: name, version, aliases, method, scores and their setting, run, date."""
    api = client(uri)
    with plain_errors(uri):
        return [row for name in _names(api) for row in versions_of(api, name)]


def show(uri: str, name: str) -> dict[str, Any]:
    """Return one registered model: its versions, its champion and every move of the champion, oldest first."""
    api = client(uri)
    with plain_errors(uri):
        rows = known_versions(api, name)
        champion = champion_of(rows)
        return {
            "name": name,
            "champion": champion["version"] if champion else None,
            "versions": rows,
            "moves": moves_of(api, name),
        }


def model_folder(uri: str, reference: str, cache: Path | None = None) -> Path:
    """Return the local folder (model.json, net.safetensors) of a path or of ``models:/NAME@ALIAS`` or ``.../VERSION``.

    Models of a server are downloaded once, into ``cache`` (``~/.cache/denoise/models``), and checked against the
    sha256 that was registered.

    Raises:
        UserError: no such folder, name, alias or version, or files that differ from the registered ones.
    """
    if not reference.startswith("models:/"):
        return _local_folder(Path(reference))
    match = REFERENCE.fullmatch(reference)
    if not match:
        raise UserError(f"{reference} is no model: write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, number = match["name"], match["alias"], match["version"]
    api = client(uri)
    with plain_errors(uri):
        rows = known_versions(api, name)
        row = named(name, rows, number) if number else _aliased(name, rows, alias)
        root = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "denoise" / "models"
        return _checked_folder(uri, api, row, root)


def _create_model(api: "MlflowClient", name: str, noise: str) -> None:
    from mlflow.exceptions import MlflowException

    if name in _names(api):
        return
    try:
        api.create_registered_model(name, description=f"Denoisers for the noise `{noise}`.")
    except MlflowException:  # somebody else was faster
        api.get_registered_model(name)


def _create_version(api: "MlflowClient", name: str, run_id: str, folder: Path, digest: str) -> "ModelVersion":
    run = api.get_run(run_id)
    logged = find_logged_model(api, run, digest)
    if logged is None:
        raise UserError(f"run {run_id} has not logged the model in {folder}: train it again, or name its own run.")
    with _default_uri(api.tracking_uri):
        version = api.create_model_version(name, f"{SOURCE}{logged.model_id}", run_id, model_id=logged.model_id)
    _link(api, logged, name, version)
    return version


@contextmanager
def _default_uri(uri: str) -> Iterator[None]:
    """Make ``uri`` the process's tracking uri: MLflow resolves models:/m-... there, whatever client one asks with."""
    key = "MLFLOW_TRACKING_URI"
    before = os.environ.get(key)
    os.environ[key] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _link(api: "MlflowClient", logged: "LoggedModel", name: str, version: "ModelVersion") -> None:
    """Let the page of the logged model name its registered version; a server has done it already."""
    key = "mlflow.modelVersions"
    known = json.loads(api.get_logged_model(logged.model_id).tags.get(key, "[]"))
    if not any(entry["name"] == name and str(entry["version"]) == str(version.version) for entry in known):
        entries = [*known, {"name": name, "version": version.version}]
        api.set_logged_model_tags(logged.model_id, {key: json.dumps(entries)})


def _names(api: "MlflowClient") -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = api.search_registered_models(f"name LIKE '{PREFIX}%'", page_token=token)
        names += [model.name for model in page]
        token = page.token
        if not token:
            return sorted(names)


def _versions(api: "MlflowClient", name: str) -> list["ModelVersion"]:
    versions: list[ModelVersion] = []
    token = None
    while True:
        page = api.search_model_versions(f"name = '{name}'", page_token=token)
        versions += page
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: int(version.version))


def versions_of(api: "MlflowClient", name: str) -> list[Row]:
    """Return the versions of a model as plain data, oldest first. sqlite gives numbers as int, a server as str."""
    aliases: dict[str, list[str]] = {}
    for alias, number in api.get_registered_model(name).aliases.items():
        aliases.setdefault(str(number), []).append(alias)
    return [_row(version, aliases.get(str(version.version), [])) for version in _versions(api, name)]


def _row(version: "ModelVersion", aliases: list[str]) -> Row:
    row: Row = {"name": version.name, "version": str(version.version), "aliases": sorted(aliases)}
    row |= {key: version.tags.get(key) for key in ("method", "noise", *SETTING)}
    row |= {key: _number(version.tags.get(key)) for key in FIGURES}
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    row |= {
        "run_id": version.run_id,
        "model_id": str(version.source).removeprefix(SOURCE),
        DIGEST_TAG: version.tags.get(DIGEST_TAG),
    }
    return row | {"created": created.isoformat(timespec="seconds")}


def _number(text: str | None) -> float | None:
    """Return a figure, None where there is none to compare with."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def known_versions(api: "MlflowClient", name: str) -> list[Row]:
    """Return the versions of a registered model; a UserError names the models that exist."""
    names = _names(api)
    if name not in names:
        known = f"registered are {', '.join(names)}" if names else "nothing is registered yet"
        raise UserError(f"there is no model {name}{nearest(name, names)}: {known}.")
    return versions_of(api, name)


def named(name: str, rows: list[Row], version: str) -> Row:
    """Return one version; a UserError names those that exist."""
    for row in rows:
        if row["version"] == version:
            return row
    raise UserError(f"{name} has no version {version}: it has {', '.join(row['version'] for row in rows) or 'none'}.")


def _aliased(name: str, rows: list[Row], alias: str) -> Row:
    for row in rows:
        if alias in row["aliases"]:
            return row
    known = [entry for row in rows for entry in row["aliases"]]
    has = f"its aliases are {', '.join(known)}" if known else f"it has none; run `denoise models promote {name}`"
    raise UserError(f"{name} has no alias {alias}{nearest(alias, known)}: {has}.")


def champion_of(rows: list[Row]) -> Row | None:
    """Return the version that @champion points to, or None."""
    return next((row for row in rows if CHAMPION in row["aliases"]), None)


def moves_of(api: "MlflowClient", name: str) -> list[dict[str, Any]]:
    """Return the audit records of a model's champion, oldest first."""
    tags = api.get_registered_model(name).tags
    numbers = sorted(int(key.removeprefix(AUDIT)) for key in tags if key.startswith(AUDIT))
    return [{"number": number, **json.loads(tags[f"{AUDIT}{number:04d}"])} for number in numbers]


def _local_folder(folder: Path) -> Path:
    if (folder / MODEL_FILES[0]).is_file():
        return folder
    inside = folder / "model"
    hint = f"; did you mean {inside}?" if (inside / MODEL_FILES[0]).is_file() else "."
    raise UserError(f"{folder} is no model folder (it has no {MODEL_FILES[0]}){hint}")


def _checked_folder(uri: str, api: "MlflowClient", row: Row, cache: Path) -> Path:
    """Return the denoiser's folder of a version, after its sha256 has been compared."""
    kept = cache / str(row["model_id"])
    if _is_registered(kept, row):
        return denoiser_in(kept)
    shutil.rmtree(kept, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        root = logged_folder(uri, api.get_logged_model(row["model_id"]), Path(work) / "model")
        if not _is_registered(root, row):
            raise UserError(
                f"the files of {row['name']} version {row['version']} are not the registered ones (sha256): "
                "they were changed or damaged; register the model again."
            )
        if Path(work) not in root.parents:
            return denoiser_in(root)  # an embedded MLflow: used where it lies
        with suppress(OSError):  # another process has put it there meanwhile
            root.replace(kept)
    return denoiser_in(kept)


def _is_registered(root: Path, row: Row) -> bool:
    try:
        return model_digest(denoiser_in(root)) == str(row[DIGEST_TAG])
    except UserError:
        return False


def _describe(row: Row, card: Mapping[str, Any]) -> str:
    """Return the model card of a version, in markdown."""
    lines = [f"**{row['method']}** for `{row['noise']}`, {'colour' if card['channels'] == 3 else 'grey'} images.", ""]
    if row["psnr"] is not None:
        lines += ["| | noisy | restored |", "|---|---|---|"]
        lines += [f"| PSNR (dB) | {_shown(row['noisy_psnr'])} | {_shown(row['psnr'])} |"]
        lines += [f"| SSIM | {_shown(row['noisy_ssim'])} | {_shown(row['ssim'])} |"]
        lines += ["", f"On `{row['data']}` under the protocol `{row['protocol']}`."]
    else:
        lines += ["Not evaluated yet."]
    lines += ["", *(f"- {key}: {_listed(value)}" for key, value in card.get("provenance", {}).items())]
    use = f"denoise restore noisy.png -o restored --model models:/{row['name']}/{row['version']}"
    lines += [f"- MLflow run: {row['run_id']}", f"- sha256: {row[DIGEST_TAG]}", "", "```", use, "```"]
    return "\n".join(lines)


def _listed(value: object) -> str:
    """Return a value of the card's provenance on one line, a list of small tables as ``samples train 0a1b...; ...``."""
    entries = value if isinstance(value, list) else [value]
    return "; ".join(
        " ".join(map(str, entry.values())) if isinstance(entry, Mapping) else str(entry) for entry in entries
    )


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.3f}"

"""Rows of the model registry: versions, their scores and aliases, read from MLflow as plain data."""

import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError, nearest
from pipelines.tracking.model import DIGEST_TAG, FOLDER_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

NAME_PREFIX = "denoise-"
SOURCE_PREFIX = "models:/"  # the source of a version is models:/ and the id of the logged model, which MLflow links to
MODEL_ID = re.compile(r"m-[0-9a-f]{32}")  # other sources (folders, runs:/, models:/NAME/2) are not made by denoise
CHAMPION, CHALLENGER = "champion", "challenger"
SCORE_KEYS = ("noisy_psnr", "psnr", "noisy_ssim", "ssim")
# Scores can be compared only where these are equal.
SETTING_KEYS = ("protocol", "data", "data_digest", "scored_noise", "channels", "passes", "averaged_over", "tiles")
OWN_TILES = "own"  # images restored as the model by itself restores them: whole, or by the tiles that its net needs

Row = dict[str, Any]  # a version, as --json shows it


def model_names(api: "MlflowClient") -> list[str]:
    """Return the names of all registered denoisers, sorted."""
    names: list[str] = []
    token = None
    while True:
        page = api.search_registered_models(f"name LIKE '{NAME_PREFIX}%'", page_token=token)
        names += [model.name for model in page]
        token = page.token
        if not token:
            return sorted(names)


def model_versions(api: "MlflowClient", name: str) -> list["ModelVersion"]:
    """Return MLflow's entities of all versions of a model, oldest first."""
    versions: list[ModelVersion] = []
    token = None
    quote = '"' if "'" in name else "'"
    while True:
        page = api.search_model_versions(f"name = {quote}{name}{quote}", page_token=token)
        versions += page
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: int(version.version))


def read_rows(api: "MlflowClient", name: str) -> list[Row]:
    """Return the versions of an existing model as rows, oldest first."""
    aliases: dict[str, list[str]] = {}
    for alias, number in api.get_registered_model(name).aliases.items():
        aliases.setdefault(str(number), []).append(alias)  # sqlite returns numbers as int, a server as str
    return [_row(version, aliases.get(str(version.version), [])) for version in model_versions(api, name)]


def require_rows(api: "MlflowClient", name: str) -> list[Row]:
    """Return the versions of a model as rows, oldest first.

    Raises:
        UserError: there is no such model; the error names those that exist.
    """
    names = model_names(api)
    if name not in names:
        known = f"registered are {', '.join(names)}" if names else "nothing is registered yet"
        raise UserError(f"there is no model {name}{nearest(name, names)}: {known}.")
    return read_rows(api, name)


def require_version(name: str, rows: list[Row], version: str) -> Row:
    """Return the row of a version.

    Raises:
        UserError: there is no such version; the error names those that exist.
    """
    for row in rows:
        if row["version"] == version:
            return row
    raise UserError(f"{name} has no version {version}: it has {', '.join(row['version'] for row in rows) or 'none'}.")


def require_alias(name: str, rows: list[Row], alias: str) -> Row:
    """Return the row that an alias points to.

    Raises:
        UserError: there is no such alias; the error names those that exist.
    """
    for row in rows:
        if alias in row["aliases"]:
            return row
    known = [entry for row in rows for entry in row["aliases"]]
    hint = f"its aliases are {', '.join(known)}" if known else f"it has none; run `denoise models promote {name}`"
    raise UserError(f"{name} has no alias {alias}{nearest(alias, known)}: {hint}.")


def champion_of(rows: list[Row]) -> Row | None:
    """Return the row that @champion points to, or None."""
    return next((row for row in rows if CHAMPION in row["aliases"]), None)


def logged_model_id(version: "ModelVersion") -> str | None:
    """Return the id of the logged model that a version was made of, None where denoise has not made it."""
    model_id = str(version.source).removeprefix(SOURCE_PREFIX)
    return model_id if MODEL_ID.fullmatch(model_id) else None


def _row(version: "ModelVersion", aliases: list[str]) -> Row:
    row: Row = {"name": version.name, "version": str(version.version), "aliases": sorted(aliases)}
    row |= {key: version.tags.get(key) for key in ("method", "noise", *SETTING_KEYS)}
    row |= {key: _finite_score(version.tags.get(key)) for key in SCORE_KEYS}
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    row |= {
        "run_id": version.run_id,
        "model_id": logged_model_id(version),
        DIGEST_TAG: version.tags.get(DIGEST_TAG),
        FOLDER_TAG: version.tags.get(FOLDER_TAG),
    }
    return row | {"created": created.isoformat(timespec="seconds")}


def _finite_score(text: str | None) -> float | None:
    """Return a score as a number, None if it is missing or not finite and so cannot be compared."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""Promotion of a version to @champion through gates, an audit record of every move, and rollback."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError, first_line
from pipelines.registry.rows import (
    AUDIT_PREFIX,
    CHALLENGER,
    CHAMPION,
    PROTOCOL_KEYS,
    Row,
    champion_of,
    read_moves,
    require_rows,
    require_version,
)
from pipelines.tracking.client import client, database_lock, plain_errors, user
from pipelines.tracking.model import DIGEST_TAG, denoiser_folder, logged_model_folder, model_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient


def promote(uri: str, name: str, version: str | int | None = None, by: str | None = None) -> dict[str, Any]:
    """Point @champion to a version that scores better than the champion under the same protocol on the same data.

    Args:
        uri: absolute tracking uri.
        name: registered model, e.g. ``denoise-gauss25``.
        version: the version; None: the best-scoring one that can be compared with the champion.
        by: name for the audit record; None: the user of this process.

    Returns:
        name, version, previous (champion), changed, and the scores; ``changed`` is False if it was champion already.

    Raises:
        UserError: a gate failed; the error names every gate that did.
    """
    api = client(uri)
    with plain_errors(uri), database_lock(uri):
        rows = require_rows(api, name)
        champion = champion_of(rows)
        if version is None:
            candidate = _best_candidate(name, rows, champion)
        else:
            candidate = require_version(name, rows, str(version))
        if champion is None or candidate["version"] != champion["version"]:
            failed = _failed_gates(uri, api, candidate, champion)
            if failed:
                raise UserError(f"{name} version {candidate['version']} is not promoted: {'; '.join(failed)}.")
        return _move_champion(api, "promote", candidate, champion, by)


def rollback(uri: str, name: str, by: str | None = None) -> dict[str, Any]:
    """Point @champion back to the previous champion, and return what ``promote`` does; recorded like a promotion.

    Raises:
        UserError: there was no earlier champion.
    """
    api = client(uri)
    with plain_errors(uri), database_lock(uri):
        rows = require_rows(api, name)
        champion = champion_of(rows)
        current = champion["version"] if champion else None
        moves = read_moves(api, name)
        promotions = [move for move in moves if move["action"] == "promote" and move["to"] == current]
        # A champion without an audit record was set by hand: go back to the last one that has a record.
        target = promotions[-1]["from"] if promotions else moves[-1]["to"] if moves else None
        if target is None:
            raise UserError(f"{name} has no earlier champion to go back to.")
        return _move_champion(api, "rollback", require_version(name, rows, target), champion, by)


def set_challenger(uri: str, name: str, version: str) -> None:
    """Point @challenger to a version, which can then be scored and promoted."""
    api = client(uri)
    with plain_errors(uri), database_lock(uri):
        api.set_registered_model_alias(name, CHALLENGER, version)


def _best_candidate(name: str, rows: list[Row], champion: Row | None) -> Row:
    """Return the best-scoring version that can be compared with the champion; the champion itself if none is better."""
    scored = [row for row in rows if row["psnr"] is not None]
    if champion and champion["psnr"] is not None:
        scored = [champion] + [row for row in scored if all(row[key] == champion[key] for key in PROTOCOL_KEYS)]
    if not scored:
        raise UserError(f"no version of {name} has a score: evaluate one and register it again.")
    if len({tuple(row[key] for key in PROTOCOL_KEYS) for row in scored}) > 1:
        choices = ", ".join(f"{row['version']} ({_format_score(row)})" for row in scored)
        raise UserError(f"the versions of {name} were not scored alike, so name the one to promote: {choices}.")
    return max(scored, key=lambda row: float(row["psnr"]))  # of equal scores the first: the champion


def _failed_gates(uri: str, api: "MlflowClient", candidate: Row, champion: Row | None) -> list[str]:
    failed = []
    if candidate["psnr"] is None:
        failed.append("it has no score (evaluate it and register it again)")
    if champion:
        failed += _failed_comparison(candidate, champion)
    with tempfile.TemporaryDirectory() as work:
        try:
            root = logged_model_folder(uri, api.get_logged_model(candidate["model_id"]), Path(work))
            failed += _failed_format(root, candidate)
        except UserError as error:
            failed.append(first_line(error))
    return failed


def _failed_comparison(candidate: Row, champion: Row) -> list[str]:
    label = f"champion version {champion['version']}"
    if champion["psnr"] is None:
        return [f"{label} has no score to compare with"]
    if candidate["psnr"] is None:
        return []
    failed = [
        f"{key} is {candidate[key]}, that of {label} is {champion[key]}"
        for key in PROTOCOL_KEYS
        if candidate[key] != champion[key]
    ]
    if not failed and candidate["psnr"] <= champion["psnr"]:
        failed.append(f"it is not better: {_format_score(candidate)}, {label} {_format_score(champion)}")
    return failed


def _failed_format(root: Path, candidate: Row) -> list[str]:
    import yaml

    metadata = yaml.safe_load((root / "MLmodel").read_text(encoding="utf-8"))
    failed = [
        f"it has no {label}"
        for key, label in (("signature", "signature"), ("saved_input_example_info", "input example"))
        if not metadata.get(key)
    ]
    if model_digest(denoiser_folder(root)) != candidate[DIGEST_TAG]:
        failed.append("the sha256 of its files is not the registered one")
    return failed


def _format_score(row: Row) -> str:
    return f"{row['psnr']:.3f} dB on {row['data']} under {row['protocol']}"


def _move_champion(api: "MlflowClient", action: str, to: Row, champion: Row | None, by: str | None) -> dict[str, Any]:
    """Set the alias, after the audit record: a move without a record could not be rolled back."""
    previous = champion["version"] if champion else None
    changed = previous != to["version"]
    result = {"name": to["name"], "version": to["version"], "previous": previous, "changed": changed}
    scores = {key: to[key] for key in ("method", "psnr", "ssim", *PROTOCOL_KEYS)}
    scores["previous_psnr"] = champion["psnr"] if champion else None
    if changed:
        number = max((move["number"] for move in read_moves(api, to["name"])), default=0) + 1
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"action": action, "who": by or user(), "when": when, "from": previous, "to": to["version"]}
        api.set_registered_model_tag(to["name"], f"{AUDIT_PREFIX}{number:04d}", json.dumps(record | scores))
        api.set_registered_model_alias(to["name"], CHAMPION, to["version"])
    return result | scores

"""Who is @champion: promotion through gates, an audit record of every move, and the way back."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError, first_line
from pipelines.registry.versions import (
    AUDIT,
    CHALLENGER,
    CHAMPION,
    SETTING,
    Row,
    champion_of,
    known_versions,
    moves_of,
    named,
)
from pipelines.tracking.client import client, locked, plain_errors, user
from pipelines.tracking.model import DIGEST_TAG, denoiser_in, logged_folder, model_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient


def promote(uri: str, name: str, version: str | int | None = None, by: str | None = None) -> dict[str, Any]:
    """Point @champion to a version, if it is better than the champion under the same protocol on the same data.

    Args:
        uri: absolute tracking uri.
        name: registered model, e.g. ``denoise-gauss25``.
        version: which one; None takes the best-scoring one that compares with the champion.
        by: who does it, for the audit; the user of this process if None.

    Returns:
        name, version, previous (champion), changed, and the figures; ``changed`` is False if it was champion already.

    Raises:
        UserError: naming every gate that failed.
    """
    api = client(uri)
    with plain_errors(uri), locked(uri):
        rows = known_versions(api, name)
        champion = champion_of(rows)
        candidate = _best(name, rows, champion) if version is None else named(name, rows, str(version))
        if champion is None or candidate["version"] != champion["version"]:
            failed = _failed_gates(uri, api, candidate, champion)
            if failed:
                raise UserError(f"{name} version {candidate['version']} is not promoted: {'; '.join(failed)}.")
        return _move(api, "promote", candidate, champion, by)


def rollback(uri: str, name: str, by: str | None = None) -> dict[str, Any]:
    """Point @champion back to the version that was champion before it; recorded like a promotion."""
    api = client(uri)
    with plain_errors(uri), locked(uri):
        rows = known_versions(api, name)
        champion = champion_of(rows)
        current = champion["version"] if champion else None
        moves = moves_of(api, name)
        risen = [move for move in moves if move["action"] == "promote" and move["to"] == current]
        # A champion that the audit does not know was set by hand: go back to the last one that it knows.
        target = risen[-1]["from"] if risen else moves[-1]["to"] if moves else None
        if target is None:
            raise UserError(f"{name} has no earlier champion to go back to.")
        return _move(api, "rollback", named(name, rows, target), champion, by)


def challenge(uri: str, name: str, version: str) -> None:
    """Point @challenger to a version, which may then be scored and promoted."""
    api = client(uri)
    with plain_errors(uri), locked(uri):
        api.set_registered_model_alias(name, CHALLENGER, version)


def _best(name: str, rows: list[Row], champion: Row | None) -> Row:
    """Return the best-scoring version of those that can be compared, the champion itself where none is better."""
    scored = [row for row in rows if row["psnr"] is not None]
    if champion and champion["psnr"] is not None:
        scored = [champion] + [row for row in scored if all(row[key] == champion[key] for key in SETTING)]
    if not scored:
        raise UserError(f"no version of {name} has a score: evaluate one and register it again.")
    if len({tuple(row[key] for key in SETTING) for row in scored}) > 1:
        choices = ", ".join(f"{row['version']} ({_score(row)})" for row in scored)
        raise UserError(f"the versions of {name} were not scored alike, so name the one to promote: {choices}.")
    return max(scored, key=lambda row: float(row["psnr"]))  # the first of equals: the champion


def _failed_gates(uri: str, api: "MlflowClient", candidate: Row, champion: Row | None) -> list[str]:
    failed = []
    if candidate["psnr"] is None:
        failed.append("it has no score (evaluate it and register it again)")
    if champion:
        failed += _failed_comparison(candidate, champion)
    with tempfile.TemporaryDirectory() as work:
        try:
            root = logged_folder(uri, api.get_logged_model(candidate["model_id"]), Path(work))
            failed += _failed_format(root, candidate)
        except UserError as error:
            failed.append(first_line(error))
    return failed


def _failed_comparison(candidate: Row, champion: Row) -> list[str]:
    best = f"champion version {champion['version']}"
    if champion["psnr"] is None:
        return [f"{best} has no score to compare with"]
    if candidate["psnr"] is None:
        return []
    failed = [
        f"{key} is {candidate[key]}, that of {best} is {champion[key]}"
        for key in SETTING
        if candidate[key] != champion[key]
    ]
    if not failed and candidate["psnr"] <= champion["psnr"]:
        failed.append(f"it is not better: {_score(candidate)}, {best} {_score(champion)}")
    return failed


def _failed_format(root: Path, candidate: Row) -> list[str]:
    import yaml

    described = yaml.safe_load((root / "MLmodel").read_text(encoding="utf-8"))
    failed = [
        f"it has no {what}"
        for key, what in (("signature", "signature"), ("saved_input_example_info", "input example"))
        if not described.get(key)
    ]
    if model_digest(denoiser_in(root)) != candidate[DIGEST_TAG]:
        failed.append("the sha256 of its files is not the registered one")
    return failed


def _score(row: Row) -> str:
    return f"{row['psnr']:.3f} dB on {row['data']} under {row['protocol']}"


def _move(api: "MlflowClient", action: str, to: Row, champion: Row | None, by: str | None) -> dict[str, Any]:
    """Set the alias. The record is written first: a move without a record could not be taken back."""
    previous = champion["version"] if champion else None
    changed = previous != to["version"]
    result = {"name": to["name"], "version": to["version"], "previous": previous, "changed": changed}
    figures = {key: to[key] for key in ("method", "psnr", "ssim", *SETTING)}
    figures["previous_psnr"] = champion["psnr"] if champion else None
    if changed:
        number = max((move["number"] for move in moves_of(api, to["name"])), default=0) + 1
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"action": action, "who": by or user(), "when": when, "from": previous, "to": to["version"]}
        api.set_registered_model_tag(to["name"], f"{AUDIT}{number:04d}", json.dumps(record | figures))
        api.set_registered_model_alias(to["name"], CHAMPION, to["version"])
    return result | figures

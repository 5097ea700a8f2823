"""Promotion of a version to @champion through gates, and rollback."""

from collections.abc import Callable
from typing import Any

from denoise.errors import UserError
from pipelines.registry import gates
from pipelines.registry.moves import Record, Trail, move_champion
from pipelines.registry.rows import CHALLENGER, SETTING_KEYS, Row, read_rows, require_rows, require_version
from pipelines.tracking.client import client, database_lock, plain_errors

FailedFiles = Callable[[Row], list[str]]  # version -> the gates that its files fail


def promote(uri: str, name: str, version: str | int | None = None, by: str | None = None) -> dict[str, Any]:
    """Point @champion to a version that scores better than the champion in the same setting.

    Args:
        uri: absolute tracking uri.
        name: registered model, e.g. ``denoise-gauss25``.
        version: the version; None: the best-scoring one that passes every gate.
        by: name for the audit record; None: the user of this process.

    Returns:
        name, version, previous (champion), changed, the scores, and ``refused``, a sentence for each version that
        scores better but has files that fail a gate; ``changed`` is False if the version was champion already.

    Raises:
        UserError: a gate failed; the error names every gate that did.
    """
    api = client(uri)
    result: dict[str, Any] = {}

    known: dict[str, list[str]] = {}  # a move that another one forestalls decides again

    def failed_files(row: Row) -> list[str]:
        if row["version"] not in known:
            known[row["version"]] = gates.failed_files(uri, api, row)
        return known[row["version"]]

    def decide(trail: Trail) -> tuple[str, Record] | None:
        rows = read_rows(api, name)
        champion = _champion(rows, trail)
        refused: list[str] = []
        if version is None:
            candidate, refused = _best(name, rows, champion, failed_files)
        else:
            candidate = require_version(name, rows, str(version))
            if candidate is not champion:
                _require_gates(name, candidate, champion, failed_files)
        result.update(_result(candidate, champion), refused=refused)
        return (candidate["version"], _record("promote", candidate, champion)) if result["changed"] else None

    with plain_errors(uri), database_lock(uri):
        require_rows(api, name)
        move_champion(api, name, decide, by)
    return result


def rollback(uri: str, name: str, by: str | None = None) -> dict[str, Any]:
    """Point @champion back to the previous champion, and return what ``promote`` does; recorded like a promotion.

    Raises:
        UserError: there was no earlier champion, or its files were changed.
    """
    api = client(uri)
    result: dict[str, Any] = {}

    def decide(trail: Trail) -> tuple[str, Record] | None:
        rows = read_rows(api, name)
        champion = _champion(rows, trail)
        promotions = [move for move in trail.moves if move["action"] == "promote" and move["to"] == trail.champion]
        # A champion without an audit record was set by hand: go back to the last one that has a record.
        target = promotions[-1]["from"] if promotions else trail.moves[-1]["to"] if trail.moves else None
        if target is None:
            raise UserError(f"{name} has no earlier champion to go back to.")
        row = require_version(name, rows, target)
        failed = gates.failed_rollback(uri, api, row)
        if failed:
            raise UserError(f"{name} does not go back to version {row['version']}: {'; '.join(failed)}.")
        result.update(_result(row, champion))
        return (row["version"], _record("rollback", row, champion)) if result["changed"] else None

    with plain_errors(uri), database_lock(uri):
        require_rows(api, name)
        move_champion(api, name, decide, by)
    return result


def set_challenger(uri: str, name: str, version: str) -> None:
    """Point @challenger to a version, which can then be scored and promoted."""
    api = client(uri)
    with plain_errors(uri), database_lock(uri):
        api.set_registered_model_alias(name, CHALLENGER, version)


def _champion(rows: list[Row], trail: Trail) -> Row | None:
    return next((row for row in rows if row["version"] == trail.champion), None)


def _best(name: str, rows: list[Row], champion: Row | None, failed_files: FailedFiles) -> tuple[Row, list[str]]:
    """Return the best-scoring version that passes every gate, or the champion; and a sentence for each one skipped."""
    if champion and gates.score_problem(champion):
        raise UserError(
            f"no version is compared with champion version {champion['version']}, which "
            f"{gates.score_problem(champion)}."
        )
    others = [row for row in rows if row is not champion and row["psnr"] is not None]
    better = [row for row in others if not gates.failed_scores(row, champion)]
    if champion is None:
        _require_one_setting(name, better)
    refused: list[str] = []
    for row in sorted(better, key=lambda row: -float(row["psnr"])):
        failed = failed_files(row)
        if not failed:
            return row, refused
        refused.append(f"version {row['version']} is not promoted: {'; '.join(failed)}")
    if champion:
        return champion, refused
    refused += [
        f"version {row['version']} is not promoted: {'; '.join(gates.failed_scores(row, None))}"
        for row in others
        if row not in better
    ]
    if not refused:
        raise UserError(f"no version of {name} has a score: evaluate one and register it again.")
    raise UserError(f"{name} gets no champion: {'. '.join(refused)}.")


def _require_one_setting(name: str, rows: list[Row]) -> None:
    if len({tuple(row[key] for key in SETTING_KEYS) for row in rows}) > 1:
        choices = ", ".join(f"{row['version']} ({gates.format_score(row)})" for row in rows)
        raise UserError(f"the versions of {name} were not scored alike, so name the one to promote: {choices}.")


def _require_gates(name: str, candidate: Row, champion: Row | None, failed_files: FailedFiles) -> None:
    failed = gates.failed_scores(candidate, champion) + failed_files(candidate)
    if failed:
        raise UserError(f"{name} version {candidate['version']} is not promoted: {'; '.join(failed)}.")


def _result(to: Row, champion: Row | None) -> dict[str, Any]:
    previous = champion["version"] if champion else None
    scores = {key: to[key] for key in ("method", "psnr", "ssim", *SETTING_KEYS)}
    scores["previous_psnr"] = champion["psnr"] if champion else None
    return {
        "name": to["name"],
        "version": to["version"],
        "previous": previous,
        "changed": previous != to["version"],
        **scores,
    }


def _record(action: str, to: Row, champion: Row | None) -> Record:
    result = _result(to, champion)
    left_out = ("name", "version", "previous", "changed")
    return {"action": action, **{key: value for key, value in result.items() if key not in left_out}}

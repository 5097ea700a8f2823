"""The gates that a version has to pass before it becomes the champion; each function returns those that failed."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.documents import parse_yaml
from denoise.errors import UserError, first_line
from denoise.model_files import model_digest
from pipelines.registry.rows import SCORE_KEYS, SETTING_KEYS, Row
from pipelines.tracking.model import DIGEST_TAG, FOLDER_TAG, denoiser_folder, folder_digest, logged_model_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

SSIM_TOLERANCE = 0.005  # by which SSIM may be lower where PSNR is higher
AGAIN = "evaluate it and register it again"


def failed_scores(candidate: Row, champion: Row | None) -> list[str]:
    """Return what speaks against a version by its scores, compared with the noisy images and with the champion."""
    problem = score_problem(candidate)
    failed = [f"it {problem}"] if problem else _worse_than_noisy(candidate)
    if champion:
        label = f"champion version {champion['version']}"
        champion_problem = score_problem(champion)
        if champion_problem:
            failed.append(f"{label} {champion_problem}")
        elif not problem:
            failed += _worse_than_champion(candidate, champion, label)
    return failed


def score_problem(row: Row) -> str:
    """Return why the scores of a version cannot be compared, an empty string if they can."""
    if row["psnr"] is None:
        return f"has no score ({AGAIN})"
    missing = [key for key in (*SCORE_KEYS, *SETTING_KEYS) if row[key] is None]
    return f"has scores without {', '.join(missing)} ({AGAIN})" if missing else ""


def failed_files(uri: str, api: "MlflowClient", row: Row) -> list[str]:
    """Return what speaks against the files of a version: changed, not complete, or weights that are not finite."""
    try:
        with _files(uri, api, row) as root:
            failed = _missing_metadata(root) + changed_files(root, row) + _bad_model(root)
    except UserError as error:
        return [first_line(error)]
    if row[FOLDER_TAG] is None:
        failed.append("the sha256 of its code was not recorded when it was logged: train and register it again")
    return failed


def failed_rollback(uri: str, api: "MlflowClient", row: Row) -> list[str]:
    """Return what speaks against going back to a version: that its files were changed, or are gone."""
    try:
        with _files(uri, api, row) as root:
            return changed_files(root, row)
    except UserError as error:
        return [first_line(error)]


def changed_files(root: Path, row: Row) -> list[str]:
    """Return how a logged model differs from the registered one, as far as its digests were recorded."""
    if model_digest(denoiser_folder(root)) != row[DIGEST_TAG]:
        return ["the sha256 of its files is not the registered one"]
    if row[FOLDER_TAG] is not None and folder_digest(root) != row[FOLDER_TAG]:
        return ["its code, or another file beside the weights, was changed after it was logged (sha256)"]
    return []


def format_score(row: Row) -> str:
    """Return a version's score in words."""
    return f"{row['psnr']:.3f} dB on {row['data']} under {row['protocol']}"


@contextmanager
def _files(uri: str, api: "MlflowClient", row: Row) -> Iterator[Path]:
    """Hand out the folder of a version's logged model, until the end of the block."""
    if row["model_id"] is None:
        raise UserError("it was not registered by `denoise models register`")
    with tempfile.TemporaryDirectory() as work:
        yield logged_model_folder(uri, api.get_logged_model(row["model_id"]), Path(work))


def _worse_than_noisy(row: Row) -> list[str]:
    failed = []
    if row["psnr"] <= row["noisy_psnr"]:
        failed.append(f"it is not better than the noisy images: {format_score(row)}, they {row['noisy_psnr']:.3f} dB")
    if row["ssim"] < row["noisy_ssim"] - SSIM_TOLERANCE:
        failed.append(
            f"its SSIM is lower than that of the noisy images: {row['ssim']:.3f}, they {row['noisy_ssim']:.3f}"
        )
    return failed


def _worse_than_champion(candidate: Row, champion: Row, label: str) -> list[str]:
    different = [
        f"{key} is {candidate[key]}, that of {label} is {champion[key]}"
        for key in SETTING_KEYS
        if candidate[key] != champion[key]
    ]
    if different:
        return different
    failed = []
    if candidate["psnr"] <= champion["psnr"]:
        failed.append(f"it is not better: {format_score(candidate)}, {label} {format_score(champion)}")
    if candidate["ssim"] < champion["ssim"] - SSIM_TOLERANCE:
        failed.append(
            f"its SSIM is lower by more than {SSIM_TOLERANCE}: {candidate['ssim']:.4f}, {label} {champion['ssim']:.4f}"
        )
    return failed


def _missing_metadata(root: Path) -> list[str]:
    try:
        metadata = parse_yaml((root / "MLmodel").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        metadata = None
    if not isinstance(metadata, dict):
        return ["its file MLmodel cannot be read"]
    labels = {"signature": "signature", "saved_input_example_info": "input example"}
    return [f"it has no {label}" for key, label in labels.items() if not metadata.get(key)]


def _bad_model(root: Path) -> list[str]:
    """Return why the model cannot be loaded, e.g. weights that are not finite."""
    from denoise.denoiser import load_denoiser

    try:
        load_denoiser(denoiser_folder(root))
    except UserError as error:
        return [first_line(error)]
    return []

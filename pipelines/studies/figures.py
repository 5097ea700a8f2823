"""Figures of a study's cell: numbers that a table shows and that expressions compare."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.studies.results import Cell, Training

LEVELS = 255  # grey levels of an image


class MissingFigureError(Exception):
    """A cell lacks a figure; the message says which."""


def mean_score(cell: Cell, key: str, data: str | None = None) -> float:
    """Return a score on one test set, or its mean over the test sets; an infinite PSNR, null in the file, is missing.

    Raises:
        MissingFigureError: it was not scored there.
    """
    if data is not None and data not in cell.scores:
        raise MissingFigureError(f"{cell.row} was not scored on {data}")
    chosen = cell.scores.values() if data is None else [cell.scores[data]]
    values = [scores.get(key) for scores in chosen]
    if not values or any(value is None for value in values):
        raise MissingFigureError(f"{cell.row} has no {key}")
    return statistics.fmean(float(value) for value in values if value is not None)


def worst_gain(cell: Cell, other: Cell) -> float:
    """Return the least PSNR difference of a cell over another, in dB, over the images that both scored."""
    ours, theirs = image_scores(cell), image_scores(other)
    shared = [ours[name] - theirs[name] for name in ours.keys() & theirs.keys()]
    if not shared:
        raise MissingFigureError(f"{cell.row} and {other.row} share no image")
    return min(shared)


def image_scores(cell: Cell, key: str = "psnr") -> dict[tuple[str, str], float]:
    """Return a score of every image, by set and name, where it is finite."""
    return {
        (data, image["name"]): float(image[key])
        for data, scores in cell.scores.items()
        for image in scores.get("images", ())
        if image.get(key) is not None
    }


def training(cell: Cell) -> Training:
    """Return what a cell's training took.

    Raises:
        MissingFigureError: nothing was trained.
    """
    if cell.training is None:
        raise MissingFigureError(f"{cell.row} was not trained")
    return cell.training


def _seconds_per_step(cell: Cell) -> float:
    rate = _rate(cell)
    return training(cell).batch_size / rate


def _rate(cell: Cell) -> float:
    rate = training(cell).images_per_second
    if not rate:
        raise MissingFigureError(f"{cell.row} has no images a second")
    return rate


def _last_validation(cell: Cell) -> float:
    values = [row["val_psnr"] for row in training(cell).history if row.get("val_psnr") is not None]
    if not values:
        raise MissingFigureError(f"{cell.row} was not validated")
    return float(values[-1])


def _sigma(cell: Cell, data: str | None = None) -> float:
    """Return the sigma that the model has learnt or estimates, mean over images, in 255ths."""
    return LEVELS * mean_score(cell, "estimated_sigma", data)


def _score(key: str, scale: float = 1.0) -> Callable[..., float]:
    return lambda cell, data=None: scale * mean_score(cell, key, data)


def _gain(cell: Cell, data: str | None = None) -> float:
    return mean_score(cell, "psnr", data) - mean_score(cell, "noisy_psnr", data)


# Name in an expression -> function of a cell and, for scores, of one test set.
FIGURES: Mapping[str, Callable[..., Any]] = {
    "psnr": _score("psnr"),
    "ssim": _score("ssim"),
    "noisy": _score("noisy_psnr"),
    "gain": _gain,
    "bias": _score("bias", LEVELS),
    "seconds": _seconds_per_step,
    "rate": _rate,
    "val": _last_validation,
    "sigma": _sigma,
}

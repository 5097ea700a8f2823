"""What an estimate says: its figures under names of their own, what it assumes, and what makes it doubtful."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from denoise.noise_meter import CORRELATED, LITTLE
from denoise.quality.intervals import CONFIDENCE, ErrorEstimate, PsnrEstimate
from denoise.quality.local_noise import LocalNoise
from denoise.quality.residual import structure

Source = Literal["second observation", "SURE, known noise", "SURE, measured noise"]

MIDDLE_GREY = 0.5
ASSUMPTIONS: dict[Source, str] = {
    "second observation": "the noise of the two observations is independent and has zero mean",
    "SURE, known noise": "the noise is what was added: its level and correlation are known",
    "SURE, measured noise": "the noise has zero mean, and level and correlation as measured in flat places",
}
NOT_COVERED: dict[Source, str] = {
    "second observation": "noise that both observations share, or a scene that moved between them",
    "SURE, known noise": "that Stein's formula is exact for Gaussian noise alone",
    "SURE, measured noise": "noise that differs between flat places and others, as in JPEGs, or between images",
}


def describe(
    source: Source,
    total: PsnrEstimate,
    images: Sequence[tuple[str, ErrorEstimate]],
    residuals: Tensor,
    noise_map: Tensor,
    measured: LocalNoise | None,
) -> dict[str, Any]:
    """Return an estimate of a set as plain data.

    Args:
        source: how it was made.
        total: of all images.
        images: each by its name.
        residuals: autocorrelation of the residual, mean over images, (2 REACH + 1) squared.
        noise_map: the same of the noise.
        measured: the noise as measured, None where that was not needed.
    """
    found = structure(residuals, noise_map)
    shared = ", the scatter of the measured variance, and the texture of usual photographs in it" if measured else ""
    probes = "" if source == "second observation" else " and the probes"
    return {
        "source": source,
        "assumption": ASSUMPTIONS[source],
        "estimated_psnr": total.psnr,
        "confidence": CONFIDENCE,
        "interval": total.interval,
        "interval_alike": total.interval_alike,
        "covers": f"the noise of these images{probes}{shared}; interval_alike also the choice of the images",
        "does_not_cover": NOT_COVERED[source],
        "too_weak": measured is not None and _too_weak(measured),
        "cautions": _cautions(measured),
        "images_used": total.images,
        "images_unresolved": total.unresolved,
        "noise": None if measured is None else {"slope": measured.slope, "offset": measured.offset},
        "noise_uncertainty": measured.uncertainty if measured else 0.0,
        "residual": {
            "excess": found.excess,
            "lag": list(found.lag),
            "correlation": _rounded(found.residual),
            "noise_correlation": _rounded(found.noise),
        },
        "images": [{"name": name, "estimated_psnr": error.psnr, **_as_dict(error)} for name, error in images],
    }


def _as_dict(error: ErrorEstimate) -> dict[str, float]:
    return {f"estimated_{key}" if key == "mse" else key: value for key, value in asdict(error).items()}


def _rounded(table: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in table.tolist()]


def _too_weak(measured: LocalNoise) -> bool:
    return measured.variance(torch.tensor(MIDDLE_GREY)).sqrt().item() < LITTLE


def _cautions(measured: LocalNoise | None) -> list[str]:
    """Return what makes an estimate with this noise doubtful."""
    if measured is None:
        return []
    cautions = []
    if _too_weak(measured):
        cautions.append("the noise is too weak to be told from texture, so that the estimate means little")
    if measured.neighbours > CORRELATED:
        cautions.append(
            f"the noise of neighbours is correlated ({measured.neighbours:.2f}), as in photographs that a camera has "
            "processed; flat places of these hold less noise than others, so that the estimate is too high"
        )
    return cautions

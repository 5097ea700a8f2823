"""Scores of an evaluation, as they are registered with a model: complete, consistent, and of this model.

They decide which model is promoted, so they are of whole sets, and of a model that was told the true noise level.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from denoise.errors import UserError
from pipelines.registry.rows import OWN_TILES, SCORE_KEYS

if TYPE_CHECKING:
    from denoise.denoiser import Denoiser

AGAIN = "evaluate the model with `denoise evaluate MODEL --out FOLDER` and register that"
Text = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, strict=True)]
Overlap = Annotated[int, Field(ge=0, strict=True)]
Level = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
Decibels = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Similarity = Annotated[float, Field(ge=-1, le=1, strict=True)]


@dataclass(frozen=True)
class Figures:
    """PSNR in dB and SSIM of the noisy and the restored image; of one image, or the mean over a set."""

    noisy_psnr: Decibels
    psnr: Decibels
    noisy_ssim: Similarity
    ssim: Similarity


@dataclass(frozen=True)
class ImageScores(Figures):
    """The scores of one image."""

    name: Annotated[str, Field(min_length=1, max_length=4096)]


@dataclass(frozen=True)
class Scores(Figures):
    """What a scores.json of ``denoise evaluate`` holds, as far as the registry needs it."""

    method: Text
    model_sha256: Text
    noise: Text
    channels: Count
    data: Text
    data_digest: Text
    protocol: Text
    passes: Count
    averaged_over: Count
    images: Annotated[tuple[ImageScores, ...], Field(min_length=1)]
    # Files of version 0.1 lack these: all images, whole, and the true level.
    tile: Count | None = None
    overlap: Overlap | None = None
    assumed_level: Level = 1.0
    images_used: Count | None = None
    images_of: Count | None = None

    def tags(self, denoiser: "Denoiser") -> dict[str, str]:
        """Return the tags of a registered version of this model that hold these scores."""
        setting = ("protocol", "data", "data_digest", "channels", "passes", "averaged_over")
        tags = {key: str(getattr(self, key)) for key in (*setting, *SCORE_KEYS)}
        return tags | {"scored_noise": self.noise, "tiles": self._tiles(denoiser)}

    def _tiles(self, denoiser: "Denoiser") -> str:
        own = denoiser.tiles
        if (self.tile, self.overlap) == ((own.largest, own.least_overlap) if own else (None, None)):
            return OWN_TILES
        return "whole images" if self.tile is None else f"{self.tile}, overlap {self.overlap}"


def check_scores(tree: Mapping[str, Any], denoiser: "Denoiser") -> Scores:
    """Return the scores of an evaluation of this model, for the noise that it was trained for.

    Raises:
        UserError: they lack something, contradict themselves, are of another model or noise, of some images of a set
            only, or of a level that is not the true one.
    """
    if "estimate" in tree and "psnr" not in tree:
        raise UserError(
            "these are no scores but an estimate, of a set without clean images: a model is promoted by measured PSNR "
            "alone; evaluate it on a set with clean images, or register it without scores."
        )
    try:
        scores: Scores = TypeAdapter(Scores).validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"]
        raise UserError(f"these are no scores of an evaluation ({key}: {reason.lower()}); {AGAIN}.") from None
    _check_means(scores)
    _check_model(scores, denoiser)
    _check_complete(scores)
    return scores


def _check_means(scores: Scores) -> None:
    if len({image.name for image in scores.images}) < len(scores.images):
        raise UserError(f"these scores list an image twice; {AGAIN}.")
    for key in SCORE_KEYS:
        mean = sum(getattr(image, key) for image in scores.images) / len(scores.images)
        if not math.isclose(mean, getattr(scores, key), rel_tol=1e-6, abs_tol=1e-6):
            raise UserError(
                f"these scores are not consistent: {key} is {getattr(scores, key)}, the mean over the images {mean}; "
                f"{AGAIN}."
            )


def _check_model(scores: Scores, denoiser: "Denoiser") -> None:
    from denoise.evaluate import get_protocol
    from denoise.noise import parse_noise

    get_protocol(scores.protocol)
    for key, found, expected in (
        ("model_sha256", scores.model_sha256, denoiser.digest),
        ("method", scores.method, denoiser.name),
        ("channels", scores.channels, denoiser.channels),
    ):
        if found != expected:
            raise UserError(f"these are scores of another model: {key} is {found}, expected {expected}; {AGAIN}.")
    trained, scored = parse_noise(denoiser.noise), parse_noise(scores.noise)
    # A model that was trained for a range of levels may be scored on a part of it.
    if scored.family != trained.family or not trained.low <= scored.low <= scored.high <= trained.high:
        raise UserError(
            f"these scores are for the noise {scores.noise}, and the model was trained for {denoiser.noise}: "
            f"{AGAIN}, without --noise."
        )


def _check_complete(scores: Scores) -> None:
    if scores.images_used != scores.images_of:
        raise UserError(
            f"these are scores of {scores.images_used} of {scores.images_of} images, and a model is registered with "
            f"those of all: {AGAIN}, without evaluate.images."
        )
    if scores.assumed_level != 1:
        raise UserError(
            f"these are scores of a model that was told {scores.assumed_level:g} times the true noise level: {AGAIN}, "
            "without evaluate.assumed_level."
        )

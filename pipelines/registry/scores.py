"""Scores of an evaluation, as they are registered with a model: complete, consistent, and of this model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from denoise.errors import UserError
from pipelines.registry.rows import SCORE_KEYS

if TYPE_CHECKING:
    from denoise.denoiser import Denoiser

AGAIN = "evaluate the model with `denoise evaluate MODEL --out FOLDER` and register that"
Text = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, strict=True)]
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

    def tags(self) -> dict[str, str]:
        """Return the tags of a registered version that hold these scores."""
        setting = ("protocol", "data", "data_digest", "channels", "passes", "averaged_over")
        tags = {key: str(getattr(self, key)) for key in (*setting, *SCORE_KEYS)}
        return tags | {"scored_noise": self.noise}


def check_scores(tree: Mapping[str, Any], denoiser: "Denoiser") -> Scores:
    """Return the scores of an evaluation of this model, for the noise that it was trained for.

    Raises:
        UserError: they lack something, contradict themselves, or are of another model or noise.
    """
    try:
        scores: Scores = TypeAdapter(Scores).validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"]
        raise UserError(f"these are no scores of an evaluation ({key}: {reason.lower()}); {AGAIN}.") from None
    _check_means(scores)
    _check_model(scores, denoiser)
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

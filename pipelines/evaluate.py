"""The evaluate stage: score a model on data sets under a named protocol, and write some restored images.

Where a set has no clean images, the PSNR is estimated, which is no score: it stands under a key of its own.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config, Evaluate
from denoise.errors import UserError
from denoise.files import file_stems, fitting_name, refuse_foreign, write_folder, write_json
from pipelines.console import progress
from pipelines.datasets.layout import open_sets

if TYPE_CHECKING:
    from denoise.data.shards import Shards
    from denoise.denoiser import Denoiser
    from denoise.estimate import EstimatedImage
    from denoise.evaluate import Protocol, ScoredImage
    from denoise.noise import Noise

SCORES, IMAGES, PAGE = "scores.json", "images", "residual.html"
ESTIMATE = "estimate"  # key of what is estimated without clean images
MAX_IMAGES = 24  # written of each set, with the best and the worst: enough for a report, and no folder of gigabytes


def evaluate_model(
    config: Config,
    denoiser: "Denoiser",
    names: Sequence[str],
    protocol_name: str,
    noise_name: str | None,
    out: Path | None,
    *,
    estimate: bool = False,
) -> list[dict[str, Any]]:
    """Score a model on the test split of data sets and return one result a set.

    Args:
        config: where the data is, which overlaps are allowed, the precision to compute in, and of ``evaluate`` the
            noise, the level that the model is told, and how many images of each set.
        denoiser: the model, with the tiles that it restores by.
        names: the data sets.
        protocol_name: how to draw noise and compare images.
        noise_name: the noise to add; by default ``evaluate.noise``, and without that what the model was trained for.
        out: scores.json and images/ are written to OUT/NAME/PROTOCOL for each set, and a page of residuals where there
            are no clean images; those of other protocols stay.
        estimate: also estimate the PSNR of sets that have clean images, as if they had none.

    Returns:
        What ``denoise.evaluate.evaluate`` returns; for a set without clean images no scores, but ``estimate`` (see
        ``denoise.estimate.estimate``).

    Raises:
        UserError: a set that is missing or was trained on, an unknown protocol or noise, a level told to a method that
            needs none, other files where scores go, an estimate under noise whose covariance is not known.
    """
    from denoise import distributed
    from denoise.estimate import lacks_clean
    from denoise.evaluate import evaluation_precision, get_protocol
    from denoise.noise import parse_noise

    denoiser = replace(denoiser, precision=evaluation_precision(config.evaluate.precision, denoiser.card))
    protocol, device = get_protocol(protocol_name), distributed.device()
    noise = parse_noise(noise_name or config.evaluate.noise or denoiser.noise)
    _refuse_useless_level(config, denoiser)
    sets = open_sets(config, "test", names)
    _refuse_training_images(config, denoiser, sets)
    if out is not None:
        for name, _ in sets:
            refuse_foreign(out / name / protocol.name, (SCORES, IMAGES, PAGE), "an evaluation")
    scoring = _Scoring(config, denoiser, noise, protocol, str(device))
    results = []
    for name, shards in sets:
        started = time.perf_counter()
        if lacks_clean(shards, noise):
            result = scoring.estimate(name, shards, out and out / name / protocol.name)
        else:
            result = scoring.score(name, shards, out and out / name / protocol.name, also_estimate=estimate)
        results.append({**result, "seconds": round(time.perf_counter() - started, 2)})
    return results


@dataclass(frozen=True)
class _Scoring:
    """Scores a model, or estimates its PSNR, on one set after another."""

    config: Config
    denoiser: "Denoiser"
    noise: "Noise"
    protocol: "Protocol"
    device: str

    def score(self, name: str, shards: "Shards", out: Path | None, *, also_estimate: bool) -> dict[str, Any]:
        """Return the scores on a set with clean images, and write them to ``out``."""
        from denoise.evaluate import count_restorations, evaluate

        spec, images = self.config.evaluate, list["ScoredImage"]()
        total = count_restorations(self.protocol, name, shards, spec.images)
        with progress(f"evaluate {self.denoiser.name} {name}", total) as advance:

            def on_image(scored: "ScoredImage") -> None:
                if scored.repeat == 0:
                    _keep_some(images, scored)
                advance(1, f"{scored.scores['psnr']:.2f} dB")

            result = evaluate(
                *(self.denoiser, shards, name, self.noise, self.protocol, self.device, on_image),
                assumed_level=spec.assumed_level,
                images=spec.images,
            )
        if also_estimate:
            result[ESTIMATE] = self._estimate(name, shards, [])[ESTIMATE]
        if out is not None:
            _write(out, result, images)
        return result

    def estimate(self, name: str, shards: "Shards", out: Path | None) -> dict[str, Any]:
        """Return the estimated PSNR on a set without clean images, and write it with a page of residuals to ``out``."""
        images: list[EstimatedImage] = []
        result = self._estimate(name, shards, images)
        if out is not None:
            _write_estimate(out, result, images)
        return result

    def _estimate(self, name: str, shards: "Shards", images: "list[EstimatedImage]") -> dict[str, Any]:
        """Estimate, and keep the first images."""
        from denoise.estimate import Extent, estimate
        from denoise.evaluate import spread

        spec = self.config.evaluate
        total = len(spread(len(shards), spec.images))
        with progress(f"estimate {self.denoiser.name} {name}", total) as advance:

            def on_image(image: "EstimatedImage") -> None:
                images.extend([image] * (len(images) < MAX_IMAGES))
                advance(1)

            return estimate(
                *(self.denoiser, shards, name, self.noise, self.protocol, self.device, on_image),
                assumed_level=spec.assumed_level,
                extent=Extent(spec.images),
            )


def as_configured(denoiser: "Denoiser", spec: Evaluate) -> "Denoiser":
    """Return a denoiser that averages passes and symmetries, and restores by tiles, as ``evaluate`` says."""
    denoiser = replace(denoiser, passes=spec.passes, tile=spec.tile, overlap=spec.overlap)
    return denoiser.averaging() if spec.average else denoiser


def find_scores(folder: Path, protocol: str | None = None) -> Path:
    """Return the file of scores of one data set.

    Args:
        folder: OUT/NAME, in which version 0.1 wrote the file itself, or OUT/NAME/PROTOCOL, or the file.
        protocol: None for the only one that there are scores under.

    Raises:
        UserError: there are no scores, or some under several protocols.
    """
    if folder.is_file():
        return folder
    found = sorted(folder.glob(f"{protocol or '*'}/{SCORES}")) or [*folder.glob(SCORES)]
    if len(found) > 1:
        names = " and ".join(path.parent.name for path in found)
        raise UserError(f"{folder} has scores under {names}: give the folder of one of them.")
    if not found:
        raise UserError(f"there are no scores in {folder}; write them with `denoise evaluate MODEL --out FOLDER`.")
    return found[0]


def _refuse_useless_level(config: Config, denoiser: "Denoiser") -> None:
    level = config.evaluate.assumed_level
    if level != 1 and not denoiser.needs_level:
        raise UserError(
            f"evaluate.assumed_level={level:g} would change nothing: {denoiser.name} needs no noise level; "
            "leave evaluate.assumed_level at 1."
        )


def _refuse_training_images(config: Config, denoiser: "Denoiser", sets: "Sequence[tuple[str, Shards]]") -> None:
    """Refuse to score a model on a set of shards that it was trained on, or on any image that it was trained on.

    A model of 0.1.0 names its sets only, so for it another set's images are not compared.
    """
    from denoise.model_files import TRAINING_IMAGES
    from denoise.sharding.image_set import read_image_set
    from denoise.sharding.leakage import is_allowed, plain_name, refuse_trained_on

    parts = denoiser.card.get("provenance", {}).get("data", [])
    trained_on = {part["digest"]: part["name"] for part in parts if part["split"] == "train"}
    for name, shards in sets:
        if shards.digest in trained_on and not is_allowed(name, config.data.allow_overlap):
            raise UserError(
                f"this model was trained on the test set {name}: scores on it would mean nothing; evaluate on another "
                f"set, or allow it by name with data.allow_overlap={plain_name(name)}."
            )
    file = denoiser.folder / TRAINING_IMAGES if denoiser.folder else None
    if file is not None and file.is_file():
        refuse_trained_on(read_image_set(file), sets, config.data.allow_overlap)


def _keep_some(images: "list[ScoredImage]", scored: "ScoredImage") -> None:
    """Add an image to the first ones of a set; behind them stand the worst and the best of the others."""
    images.append(scored)
    others = sorted(images[MAX_IMAGES:], key=lambda image: image.scores["psnr"])
    images[MAX_IMAGES:] = [*others[:1], *others[1:][-1:]]


def _write(folder: Path, result: dict[str, Any], images: "Sequence[ScoredImage]") -> None:
    names = [image["name"] for image in result["images"]]
    write_folder(folder, lambda work: _write_files(work, result, names, images, ("noisy", "restored", "clean")))


def _write_estimate(folder: Path, result: dict[str, Any], images: "Sequence[EstimatedImage]") -> None:
    from pipelines.report.residual import residual_page

    page, names = residual_page(result, images), [image["name"] for image in result[ESTIMATE]["images"]]

    def write(work: Path) -> None:
        _write_files(work, result, names, images, ("noisy", "restored"))
        (work / PAGE).write_text(page, encoding="utf-8")

    write_folder(folder, write)


def _write_files(
    work: Path,
    result: dict[str, Any],
    names: Sequence[str],
    images: "Sequence[ScoredImage | EstimatedImage]",
    kinds: Sequence[str],
) -> None:
    """Write scores.json, and the kinds of some of the images with these names."""
    from denoise.images.io import DecodedImage, write_image
    from denoise.images.tensors import to_pixels

    write_json(work / SCORES, result)
    (work / IMAGES).mkdir()
    stems = file_stems(names)
    for image in images:
        for kind in kinds:
            pixels = to_pixels(getattr(image, kind))
            write_image(work / IMAGES / fitting_name(stems[image.name], f"-{kind}.png"), DecodedImage(pixels))

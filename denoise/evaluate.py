"""Evaluation: PSNR and SSIM of a denoiser on a set of images, under a named protocol.

A PSNR is comparable only with others of the same protocol, so every result carries the protocol's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from denoise.data.dataset import ShardedDataset
from denoise.data.samples import evaluation_pair
from denoise.data.shards import Shards
from denoise.denoiser import Denoiser, ModelCard
from denoise.errors import UserError, nearest
from denoise.fields import set_and_split
from denoise.images.metrics import bias, psnr, ssim, ssim_uniform
from denoise.noise import Noise
from denoise.precision import resolve_precision
from denoise.rng import batch_rng
from denoise.tiling import restore_batch


@dataclass(frozen=True)
class Protocol:
    """How noise is drawn and how images are compared.

    The noise of the r-th repeat of the i-th image is keyed by (seed, r, i): fixed, and independent between repeats.
    Images are padded by reflection after the noise is added; PSNR and SSIM are means over images and repeats.
    """

    name: str
    summary: str
    quantise: Callable[[Tensor], Tensor]  # applied to noisy, restored and clean images before they are compared
    seed: int = 0
    repeats: Mapping[str, int] = field(default_factory=dict)  # data set -> repeats with fresh noise, 1 where not listed

    def repeats_of(self, data: str) -> int:
        """Return how often an image of a set, SET or SET/SPLIT, is restored, each time with fresh noise."""
        return self.repeats.get(set_and_split(data, "test")[0], 1)


def to_8_bits(images: Tensor) -> Tensor:
    """Return images clipped to [0, 1] and rounded to 8 bits, halves up: ``clip(x 255 + 0.5, 0, 255)`` to uint8."""
    return (images * 255 + 0.5).floor().clamp(0, 255) / 255


def clip(images: Tensor) -> Tensor:
    """Return images clipped to [0, 1]."""
    return images.clamp(0, 1)


def identity(images: Tensor) -> Tensor:
    """Return images unchanged."""
    return images


REPEATS = {"kodak": 10, "bsds300": 3, "set14": 20}  # of Laine et al. 2019
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("float", "unclipped, unrounded images, one pass (as Noise2Void's BSD68 notebook)", identity),
        Protocol("clamped", "clipped to [0, 1], unrounded, one pass (as Recorrupted-to-Recorrupted's code)", clip),
        Protocol("uint8", "clipped and rounded to 8 bits, one pass", to_8_bits),
        Protocol(
            "laine2019",
            "clipped and rounded to 8 bits, mean over images; Kodak x10, BSD300 x3, Set14 x20 (Laine et al. 2019)",
            to_8_bits,
            repeats=REPEATS,
        ),
        Protocol(
            "float_repeats",
            "unclipped, unrounded images, mean over images; Kodak x10, BSD300 x3, Set14 x20 (as a COMP6248 report)",
            identity,
            repeats=REPEATS,
        ),
    )
}


@dataclass(frozen=True)
class ScoredImage:
    """One restored image with its scores; tensors are (C, H, W) as the protocol compares them."""

    name: str
    repeat: int
    noisy: Tensor
    restored: Tensor
    clean: Tensor
    scores: Mapping[str, float]


def get_protocol(name: str) -> Protocol:
    """Return the protocol of a name."""
    if name not in PROTOCOLS:
        raise UserError(
            f"evaluate.protocol={name} is not known{nearest(name, PROTOCOLS)}; use one of {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


def count_restorations(protocol: Protocol, data: str, shards: Shards, images: int | None = None) -> int:
    """Return how many images an evaluation restores: the repeats of the set times the number of its images used."""
    return protocol.repeats_of(data) * len(spread(len(shards), images))


def spread(count: int, wanted: int | None) -> list[int]:
    """Return the indices of ``wanted`` of ``count`` images, evenly spread over them; of all where it is None."""
    used = count if wanted is None else min(wanted, count)
    return [index * count // used for index in range(used)]


def evaluate(
    denoiser: Denoiser,
    shards: Shards,
    data: str,
    noise: Noise,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    on_image: Callable[[ScoredImage], None] = lambda image: None,
    *,
    assumed_level: float = 1.0,
    images: int | None = None,
) -> dict[str, Any]:
    """Score a denoiser on a data set.

    Args:
        denoiser: on ``device``; it restores whole images, or by its ``tiles``.
        shards: the clean images.
        data: the name of the set, which decides the repeats.
        noise: added to the clean images.
        protocol: how noise is drawn and images are compared.
        device: where to compute.
        on_image: called with every restored image, for progress and to save some.
        assumed_level: the noise level that the denoiser is told, as a multiple of the true one.
        images: how many images to score, evenly spread over the set; each has the noise that it has among all.

    Returns:
        method, sha256 of the model (None where nothing was trained), noise, channels, data, protocol, what was
        averaged, the side and the least overlap of tiles in pixels (None for whole images), ``assumed_level``,
        ``images_used`` of ``images_of``, the precision, how the training noise was drawn, the means of the scores, and
        the scores of each image: noisy_psnr, psnr, noisy_ssim, ssim, noisy_ssim_uniform, ssim_uniform, ``bias`` (mean
        of restored - clean, images in [0, 1]), and where the net finds the noise level itself ``sigma``, the true level
        in the noise's own unit, and ``estimated_sigma``.
    """
    scorer = _Scorer(denoiser, ShardedDataset([shards], denoiser.value_range), noise, protocol, assumed_level, device)
    indices = spread(len(shards), images)
    scores: dict[str, list[Mapping[str, float]]] = {}  # image -> scores of its repeats
    for repeat in range(protocol.repeats_of(data)):
        for index in indices:
            scored = scorer.score(index, repeat)
            scores.setdefault(scored.name, []).append(scored.scores)
            on_image(scored)
    return {
        **setting(denoiser, shards, data, noise, protocol, device, assumed_level, len(indices)),
        **_means([image_scores for repeats in scores.values() for image_scores in repeats]),
        "images": [{"name": name, **_means(repeats)} for name, repeats in scores.items()],
    }


def setting(
    denoiser: Denoiser,
    shards: Shards,
    data: str,
    noise: Noise,
    protocol: Protocol,
    device: torch.device | str,
    assumed_level: float,
    images_used: int,
) -> dict[str, Any]:
    """Return what scores are of and how they were made, as ``evaluate`` describes it."""
    tiles = denoiser.tiles
    return {
        "method": denoiser.name,
        "model_sha256": denoiser.digest,
        "noise": noise.name,
        "channels": denoiser.channels,
        "data": data,
        "data_digest": shards.digest,
        "protocol": protocol.name,
        "passes": denoiser.passes or denoiser.method.test_time_passes(),
        "averaged_over": len(denoiser.symmetries),
        "tile": tiles.largest if tiles else None,
        "overlap": tiles.least_overlap if tiles else None,
        "assumed_level": assumed_level,
        "images_used": images_used,
        "images_of": len(shards),
        "precision": resolve_precision(denoiser.precision, torch.device(device)) if denoiser.method.trained else "fp32",
        "training_noise": training_noise(denoiser.card),
    }


def evaluation_precision(precision: str, card: ModelCard) -> str:
    """Return the precision to score a model in: with "auto" fp32 if it was trained in that, else as the hardware."""
    trained_in = card["config"].get("train", {}).get("precision")
    return "fp32" if precision == "auto" and trained_in == "fp32" else precision


def training_noise(card: ModelCard) -> str:
    """Return how a model's training noise was drawn: fresh (each step), fixed (one realisation), real, or untrained."""
    config = card["config"]
    if "data" not in config:
        return "untrained"
    if config["noise"] == "none":
        return "real"
    return "fixed" if config["data"].get("fixed_noise") else "fresh"


@dataclass(frozen=True)
class _Scorer:
    """Restores the images of a set one by one, and compares them with the clean ones."""

    denoiser: Denoiser
    images: ShardedDataset
    noise: Noise
    protocol: Protocol
    assumed_level: float
    device: torch.device | str

    def score(self, index: int, repeat: int) -> ScoredImage:
        """Return an image as restored, with its scores."""
        denoiser, name = self.denoiser, self.images.name(index)
        rng = batch_rng(self.protocol.seed, repeat, torch.tensor([index]), self.device)
        pair = evaluation_pair(
            self.images, index, self.noise, denoiser.channels, rng, self.device, denoiser.noise_patch
        )
        if pair.clean is None:
            raise UserError(
                f"{name} has no clean image to compare with, which others of the set have; evaluate on a set in which "
                "all have one, or none, for which the PSNR is estimated."
            )
        restored = restore_batch(denoiser, pair.noisy, pair.level * self.assumed_level, rng)
        require_finite_image(restored, name, denoiser)
        noisy, restored, clean = (self.protocol.quantise(image)[0] for image in (pair.noisy, restored, pair.clean))
        scores = _compare(noisy, restored, clean)
        estimated = denoiser.estimated_level(pair.noisy)
        if estimated is not None:
            scores |= {"sigma": float(pair.level), "estimated_sigma": estimated}
        return ScoredImage(name, repeat, noisy, restored, clean, scores)


def require_finite_image(restored: Tensor, name: str, denoiser: Denoiser) -> None:
    """Check that a restored image holds numbers only: NaN would be written as null, as an infinite PSNR is.

    Raises:
        UserError: it does not.
    """
    if not torch.isfinite(restored).all():
        raise UserError(
            f"{name} as {denoiser.name} restores it holds values that are not finite: the model is damaged, or was "
            "trained with too high a train.lr; train it again."
        )


def _compare(noisy: Tensor, restored: Tensor, clean: Tensor) -> dict[str, float]:
    return {
        "noisy_psnr": psnr(noisy, clean),
        "psnr": psnr(restored, clean),
        "noisy_ssim": ssim(noisy, clean),
        "ssim": ssim(restored, clean),
        "noisy_ssim_uniform": ssim_uniform(noisy, clean),
        "ssim_uniform": ssim_uniform(restored, clean),
        "bias": bias(restored, clean),
    }


def _means(scores: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in scores) / len(scores) for name in scores[0]}

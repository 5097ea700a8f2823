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
from denoise.images.metrics import psnr, ssim
from denoise.images.tensors import pad, unpad
from denoise.noise import Noise
from denoise.precision import resolve_precision
from denoise.rng import batch_rng


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


def to_8_bits(images: Tensor) -> Tensor:
    """Return images clipped to [0, 1] and rounded to 8 bits, halves up: ``clip(x 255 + 0.5, 0, 255)`` to uint8."""
    return (images * 255 + 0.5).floor().clamp(0, 255) / 255


def clip(images: Tensor) -> Tensor:
    """Return images clipped to [0, 1]."""
    return images.clamp(0, 1)


def identity(images: Tensor) -> Tensor:
    """Return images unchanged."""
    return images


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
            repeats={"kodak": 10, "bsds300": 3, "set14": 20},
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


def count_restorations(protocol: Protocol, data: str, shards: Shards) -> int:
    """Return how many images an evaluation restores: the repeats of the set times its size."""
    return protocol.repeats.get(data, 1) * len(shards)


def evaluate(
    denoiser: Denoiser,
    shards: Shards,
    data: str,
    noise: Noise,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    on_image: Callable[[ScoredImage], None] = lambda image: None,
) -> dict[str, Any]:
    """Score a denoiser on a data set.

    Args:
        denoiser: on ``device``.
        shards: the clean images.
        data: the name of the set, which decides the repeats.
        noise: added to the clean images.
        protocol: how noise is drawn and images are compared.
        device: where to compute.
        on_image: called with every restored image, for progress and to save some.

    Returns:
        method, sha256 of the model (None where nothing was trained), noise, channels, data, protocol, what was
        averaged, the precision, how the training noise was drawn, the means noisy_psnr, psnr, noisy_ssim and ssim, and
        the same four for each image.
    """
    scores: dict[str, list[Mapping[str, float]]] = {}  # image -> scores of its repeats
    for repeat in range(protocol.repeats.get(data, 1)):
        for index in range(len(shards)):
            scored = _score(denoiser, shards, index, repeat, noise, protocol, device)
            scores.setdefault(scored.name, []).append(scored.scores)
            on_image(scored)
    images = [{"name": name, **_means(repeats)} for name, repeats in scores.items()]
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
        "precision": resolve_precision(denoiser.precision, torch.device(device)) if denoiser.method.trained else "fp32",
        "training_noise": training_noise(denoiser.card),
        **_means([image_scores for repeats in scores.values() for image_scores in repeats]),
        "images": images,
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


def _score(
    denoiser: Denoiser,
    shards: Shards,
    index: int,
    repeat: int,
    noise: Noise,
    protocol: Protocol,
    device: torch.device | str,
) -> ScoredImage:
    rng = batch_rng(protocol.seed, repeat, torch.tensor([index]), device)
    images = ShardedDataset([shards])
    pair = evaluation_pair(images, index, noise, denoiser.channels, rng, device)
    if pair.clean is None:
        raise UserError(
            f"{images.name(index)} has no clean image to compare with; evaluate on a set of pairs, such as polyu, "
            "or look at restored images instead (denoise restore)."
        )
    restored = unpad(denoiser(pad(pair.noisy, denoiser.multiple), pair.level, rng), *pair.noisy.shape[-2:])
    if not torch.isfinite(restored).all():  # NaN would be written as null, as an infinite PSNR is
        raise UserError(
            f"{images.name(index)} as {denoiser.name} restores it holds values that are not finite: the model is "
            "damaged, or was trained with too high a train.lr; train it again."
        )
    noisy, restored, clean = (protocol.quantise(image) for image in (pair.noisy, restored, pair.clean))
    scores = {
        "noisy_psnr": psnr(noisy[0], clean[0]),
        "psnr": psnr(restored[0], clean[0]),
        "noisy_ssim": ssim(noisy[0], clean[0]),
        "ssim": ssim(restored[0], clean[0]),
    }
    return ScoredImage(images.name(index), repeat, noisy[0], restored[0], clean[0], scores)


def _means(scores: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in scores) / len(scores) for name in scores[0]}

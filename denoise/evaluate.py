"""Named evaluation protocols: PSNR and SSIM of a denoiser on a set of images.

A PSNR means nothing without the way it was computed; every result carries the name of its protocol.
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
from denoise.rng import batch_rng


@dataclass(frozen=True)
class Protocol:
    """How noise is drawn and how images are compared.

    Noise of the r-th repeat of the i-th image is keyed by (seed, r, i): fixed, and independent between repeats.
    Images are padded by reflection after the noise was added; PSNR and SSIM are means over images and repeats.
    """

    name: str
    summary: str
    compared: Callable[[Tensor], Tensor]  # what is compared of noisy, restored and clean images
    seed: int = 0
    repeats: Mapping[str, int] = field(default_factory=dict)  # data set -> passes with fresh noise, 1 where not listed


def quantised(images: Tensor) -> Tensor:
    """Return images clipped to [0, 1] and rounded to 8 bits, halves up: ``clip(x 255 + 0.5, 0, 255)`` to uint8."""
    return (images * 255 + 0.5).floor().clamp(0, 255) / 255


def clamped(images: Tensor) -> Tensor:
    """Return images clipped to [0, 1]."""
    return images.clamp(0, 1)


def untouched(images: Tensor) -> Tensor:
    """Return images as they are."""
    return images


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("float", "unclipped, unrounded images, one pass (as Noise2Void's BSD68 notebook)", untouched),
        Protocol("clamped", "clipped to [0, 1], unrounded, one pass (as Recorrupted-to-Recorrupted's code)", clamped),
        Protocol("uint8", "clipped and rounded to 8 bits, one pass", quantised),
        Protocol(
            "laine2019",
            "clipped and rounded to 8 bits, mean over images; Kodak x10, BSD300 x3, Set14 x20 (Laine et al. 2019)",
            quantised,
            repeats={"kodak": 10, "bsds300": 3, "set14": 20},
        ),
    )
}


@dataclass(frozen=True)
class Scored:
    """One restored image with its figures; tensors are (C, H, W) as the protocol compares them."""

    name: str
    repeat: int
    noisy: Tensor
    restored: Tensor
    clean: Tensor
    figures: Mapping[str, float]


def protocol_named(name: str) -> Protocol:
    """Return the protocol of a name."""
    if name not in PROTOCOLS:
        raise UserError(
            f"evaluate.protocol={name} is not known{nearest(name, PROTOCOLS)}; use one of {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


def passes(protocol: Protocol, data: str, shards: Shards) -> int:
    """Return how many images an evaluation restores: the repeats of the set times its size."""
    return protocol.repeats.get(data, 1) * len(shards)


def evaluate(
    denoiser: Denoiser,
    shards: Shards,
    data: str,
    noise: Noise,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    each: Callable[[Scored], None] = lambda scored: None,
) -> dict[str, Any]:
    """Score a denoiser on a data set.

    Args:
        denoiser: on ``device``.
        shards: the clean images.
        data: the name of the set, which decides the repeats.
        noise: added to the clean images.
        protocol: how.
        device: where to compute.
        each: called with every restored image, for progress and for keeping some.

    Returns:
        method, noise, data, protocol, how passes were averaged, how the training noise was drawn, the means noisy_psnr,
        psnr, noisy_ssim, ssim, and the same for each image.
    """
    rows: dict[str, list[Mapping[str, float]]] = {}
    for repeat in range(protocol.repeats.get(data, 1)):
        for index in range(len(shards)):
            scored = _score(denoiser, shards, index, repeat, noise, protocol, device)
            rows.setdefault(scored.name, []).append(scored.figures)
            each(scored)
    images = [{"name": name, **_means(figures)} for name, figures in rows.items()]
    return {
        "method": denoiser.name,
        "noise": noise.name,
        "data": data,
        "data_digest": shards.digest,
        "protocol": protocol.name,
        "passes": denoiser.passes or denoiser.method.passes_at_test(),
        "averaged_over": len(denoiser.symmetries),
        "training_noise": training_noise(denoiser.card),
        **_means([figures for row in rows.values() for figures in row]),
        "images": images,
    }


def training_noise(card: ModelCard) -> str:
    """Say how the noise that a model was trained with was drawn: fresh each step, one fixed realisation, or real."""
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
) -> Scored:
    rng = batch_rng(protocol.seed, repeat, torch.tensor([index], device=device))
    images = ShardedDataset([shards])
    seen = evaluation_pair(images, index, noise, denoiser.channels, rng, device)
    if seen.clean is None:
        raise UserError(
            f"{images.name(index)} has no clean image to compare with; evaluate on a set of pairs, such as polyu, "
            "or look at restored images instead (denoise restore)."
        )
    restored = unpad(denoiser(pad(seen.noisy, denoiser.multiple), seen.level, rng), *seen.noisy.shape[-2:])
    noisy, restored, clean = (protocol.compared(image) for image in (seen.noisy, restored, seen.clean))
    figures = {
        "noisy_psnr": psnr(noisy[0], clean[0]),
        "psnr": psnr(restored[0], clean[0]),
        "noisy_ssim": ssim(noisy[0], clean[0]),
        "ssim": ssim(restored[0], clean[0]),
    }
    return Scored(images.name(index), repeat, noisy[0], restored[0], clean[0], figures)


def _means(rows: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

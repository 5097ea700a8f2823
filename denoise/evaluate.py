"""Named evaluation protocols: PSNR and SSIM of a denoiser on a set of pictures.

A PSNR means nothing without the way it was computed; every result carries the name of its protocol.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from denoise.checkpoint import Denoiser
from denoise.errors import UserError, nearest
from denoise.images import as_channels, pad, to_tensor, unpad
from denoise.metrics import psnr, ssim
from denoise.noise import Noise
from denoise.rng import batch_rng
from denoise.shards import Shards


@dataclass(frozen=True)
class Protocol:
    """How noise is drawn and how pictures are compared.

    Noise of the r-th repeat of the i-th picture is keyed by (seed, r, i): fixed, and independent between repeats.
    Pictures are padded by reflection after the noise was added; PSNR and SSIM are means over pictures and repeats.
    """

    name: str
    summary: str
    quantise: bool  # clip to [0, 1] and round to 8 bits before comparing: restored and noisy; clean pictures are 8-bit
    seed: int = 0
    repeats: Mapping[str, int] = field(default_factory=dict)  # data set -> passes with fresh noise, 1 where not listed


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("float", "unclipped, unrounded pictures, one pass", quantise=False),
        Protocol(
            "laine2019",
            "clipped and rounded to 8 bits, mean over pictures; Kodak x10, BSD300 x3, Set14 x20 (Laine et al. 2019)",
            quantise=True,
            repeats={"kodak": 10, "bsds300": 3, "set14": 20},
        ),
    )
}


@dataclass(frozen=True)
class Scored:
    """One restored picture with its figures; tensors are (C, H, W) as the protocol compares them."""

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
    """Return how many pictures an evaluation restores: the repeats of the set times its size."""
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
        shards: the clean pictures.
        data: the name of the set, which decides the repeats.
        noise: added to the clean pictures.
        protocol: how.
        device: where to compute.
        each: called with every restored picture, for progress and for keeping some.

    Returns:
        method, noise, data, protocol, the means noisy_psnr, psnr, noisy_ssim, ssim, and the same for each picture.
    """
    rows: dict[str, list[Mapping[str, float]]] = {}
    for repeat in range(protocol.repeats.get(data, 1)):
        for index in range(len(shards)):
            scored = _score(denoiser, shards, index, repeat, noise, protocol, device)
            rows.setdefault(scored.name, []).append(scored.figures)
            each(scored)
    pictures = [{"name": name, **_means(figures)} for name, figures in rows.items()]
    return {
        "method": denoiser.name,
        "noise": noise.name,
        "data": data,
        "data_digest": shards.digest,
        "protocol": protocol.name,
        **_means([figures for row in rows.values() for figures in row]),
        "pictures": pictures,
    }


def _score(
    denoiser: Denoiser,
    shards: Shards,
    index: int,
    repeat: int,
    noise: Noise,
    protocol: Protocol,
    device: torch.device | str,
) -> Scored:
    clean = as_channels(to_tensor(shards.pixels(index)), denoiser.channels)[None].to(device)
    noisy, sigma = noise.corrupt(clean, batch_rng(protocol.seed, repeat, torch.tensor([index], device=device)))
    restored = unpad(denoiser(pad(noisy, denoiser.multiple), sigma), *clean.shape[-2:])
    if protocol.quantise:
        noisy, restored, clean = quantised(noisy), quantised(restored), quantised(clean)
    figures = {
        "noisy_psnr": psnr(noisy[0], clean[0]),
        "psnr": psnr(restored[0], clean[0]),
        "noisy_ssim": ssim(noisy[0], clean[0]),
        "ssim": ssim(restored[0], clean[0]),
    }
    name = str(shards.describe(index)["name"])
    return Scored(name, repeat, noisy[0], restored[0], clean[0], figures)


def quantised(pictures: Tensor) -> Tensor:
    """Return pictures clipped to [0, 1] and rounded to 8 bits, halves up: ``clip(x 255 + 0.5, 0, 255)`` to uint8."""
    return (pictures * 255 + 0.5).floor().clamp(0, 255) / 255


def _means(rows: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

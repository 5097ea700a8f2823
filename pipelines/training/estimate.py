"""The PSNR of a model that was trained on images without clean ones, estimated at the end of its training."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from denoise.errors import first_line
from pipelines.datasets.layout import open_sets

if TYPE_CHECKING:
    from denoise.estimate import EstimatedImage

LIMIT = 60.0  # seconds


def estimate_after_training(config: Config, model: Path) -> Mapping[str, Any] | None:
    """Return what ``denoise.estimate.estimate`` says of a trained model on a few real noisy images without clean ones.

    They are of a validation set, else of a training set; a set whose noise is too weak to be told from texture gives
    none. Images are restored in one pass, the middle 256 pixels of at most four.

    Returns:
        None where the noise is synthetic, or every set has clean images. Where no estimate could be made, or not within
        a minute, ``failure`` says why: this is no reason for a training to fail.
    """
    if config.noise != "none":
        return None
    try:
        return _estimate(config, model)
    except Exception as error:
        return {"failure": first_line(error)}


def _estimate(config: Config, model: Path) -> Mapping[str, Any] | None:
    from denoise import distributed
    from denoise.denoiser import load_denoiser
    from denoise.estimate import QUICK, estimate, lacks_clean
    from denoise.evaluate import get_protocol
    from denoise.noise import parse_noise

    device, noise = distributed.device(), parse_noise(config.noise)
    denoiser = replace(load_denoiser(model, device), passes=1)
    started = time.monotonic()

    def on_image(image: "EstimatedImage") -> None:
        if time.monotonic() - started > LIMIT:
            raise TimeoutError(f"it took longer than {LIMIT:.0f} s")

    for split in ("val", "train"):
        for name, shards in open_sets(config, split):
            if lacks_clean(shards, noise):
                found = estimate(denoiser, shards, name, noise, get_protocol("float"), device, on_image, extent=QUICK)
                if not found["estimate"]["too_weak"]:
                    return {**found, "split": split}
    return None

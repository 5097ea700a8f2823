"""The PSNR of restored training crops, computed beside the method, which is handed no clean image for it."""

import torch

from denoise import distributed
from denoise.config import Config
from denoise.data.crops import as_floats
from denoise.data.loader import CropBatch
from denoise.data.samples import IMAGE
from denoise.denoiser import Denoiser
from denoise.images.metrics import psnr
from denoise.methods import observe
from denoise.noise import Noise
from denoise.rng import batch_rng
from denoise.training.validation import evaluating


def training_psnr(denoiser: Denoiser, batch: CropBatch, noise: Noise, config: Config, step: int) -> dict[str, float]:
    """Return ``train_psnr``, the mean PSNR of the crops of a step, as the model restores them after that step.

    Every rank must call this with its part of the batch. A crop is corrupted as the step has done it, and restored
    alone and in one pass, so that the result does not depend on the number of ranks.

    Args:
        denoiser: of the net that is trained, or of the average of its weights.
        batch: the crops of this rank; where they are noisy already, there is no clean one and the result is empty.
        noise: that clean crops are corrupted with.
        config: of the run.
        step: that has trained on the batch, from 0.
    """
    if IMAGE not in batch.views:
        return {}
    device = distributed.device()
    scores = torch.zeros(config.train.batch_size, dtype=torch.float64)  # by position; those of other ranks stay 0
    with evaluating(denoiser.net):
        for crop in batch.parts(1):
            rng = batch_rng(config.seed, step, crop.positions, device)
            views = observe(as_floats(crop.views[IMAGE].to(device)), noise, ("noisy", "level", "clean"), rng)
            restored = denoiser(views["noisy"], views["level"], rng.stream("restore"))
            scores[crop.positions] = psnr(restored[0], views["clean"][0])
    return {"train_psnr": float(distributed.total(scores.to(device)).mean())}

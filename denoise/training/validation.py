"""Validation while training: the centres of a few images, scored and shown."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoise.data.crops import as_floats, collate, random_crop
from denoise.data.dataset import ShardedDataset
from denoise.data.samples import SampleSource, evaluation_pair, make_views
from denoise.denoiser import Denoiser
from denoise.images.io import DecodedImage, write_image
from denoise.images.metrics import psnr, ssim
from denoise.images.tensors import pad, to_pixels, unpad
from denoise.noise import Noise
from denoise.rng import batch_rng

WATCHED_IMAGES, WATCHED_SIDE = 8, 256  # validation sees the centres of the first images
MIDDLE = (0.5, 0.5)
WATCH_STEP = -1  # keys the validation noise: the same at every step, and never that of a training step


@dataclass(frozen=True)
class Validator:
    """Validates a denoiser as it learns, on the same images with the same noise whenever it is asked.

    Attributes:
        images: the watched images.
        unseen: the same as training reads its own, for the method's loss on them; None where that is not asked for.
        noise: what clean images are corrupted with.
        crop: side of a training crop, in pixels of the scenes.
        device: that computes.
        strips: the folder of what it looked like.
    """

    images: ShardedDataset
    unseen: SampleSource | None
    noise: Noise
    crop: int
    device: torch.device
    strips: Path

    def figures(self, denoiser: Denoiser, step: int) -> dict[str, float]:
        """Return the scores after ``step`` steps, and the loss where that is asked for."""
        figures = validate(denoiser, self.images, self.noise, self.device, self.strips / f"step-{step:06d}.png")
        if self.unseen is not None:
            figures["val_loss"] = held_out_loss(denoiser, self.unseen, self.noise, self.crop, self.device)
        return figures


def validate(
    denoiser: Denoiser, watched: ShardedDataset, noise: Noise, device: torch.device, strip: Path
) -> dict[str, float]:
    """Score the centres of the watched images, and write noisy | restored | clean of the first to ``strip``.

    Mean PSNR and SSIM of unrounded images in one pass, with the same noise at every step; nothing where there are no
    clean images to compare with.
    """
    training = denoiser.net.training
    denoiser.net.eval()
    scores: list[tuple[float, float]] = []
    for index in range(min(len(watched), WATCHED_IMAGES)):
        rng = batch_rng(0, WATCH_STEP, torch.tensor([index], device=device))
        seen = evaluation_pair(watched, index, noise, denoiser.channels, rng, device)
        noisy = _centre(seen.noisy)
        restored = unpad(denoiser(pad(noisy, denoiser.multiple), seen.level, rng), *noisy.shape[-2:])
        shown = [noisy, restored]
        if seen.clean is not None:
            clean = _centre(seen.clean)
            scores.append((psnr(restored[0], clean[0]), ssim(restored[0], clean[0])))
            shown.append(clean)
        if index == 0:
            strip.parent.mkdir(parents=True, exist_ok=True)
            write_image(strip, DecodedImage(to_pixels(torch.cat(shown, dim=-1)[0])))
    denoiser.net.train(training)
    if not scores:
        return {}
    return {"val_psnr": sum(s[0] for s in scores) / len(scores), "val_ssim": sum(s[1] for s in scores) / len(scores)}


def held_out_loss(denoiser: Denoiser, source: SampleSource, noise: Noise, crop: int, device: torch.device) -> float:
    """Return the method's own loss on the watched images, with the same noise and the same masks at every step.

    It asks for a clean image only where the method does: what to go by where there are only noisy ones.

    Args:
        denoiser: the net and its method.
        scenes: the images, as training reads them.
        noise: what synthetic scenes are corrupted with.
        crop: side of a training crop, in pixels of the scenes; the centres that are looked at are multiples of it.
        device: that computes.
    """
    net, method = denoiser.net, denoiser.method
    side = max(1, WATCHED_SIDE * noise.scale // crop) * crop
    training = net.training
    net.eval()
    losses = []
    for index in range(min(len(source), WATCHED_IMAGES)):
        rng = batch_rng(0, WATCH_STEP, torch.tensor([index], device=device))
        centre = {name: random_crop(view, side, MIDDLE) for name, view in source[index].items()}
        views = {name: as_floats(view.to(device)) for name, view in collate([centre], denoiser.channels).items()}
        batch = method.make_batch(make_views(views, method, noise, rng), rng.stream("method"))
        with torch.no_grad():
            losses.append(float(method.loss(net, batch, 1.0)["loss"]))
    net.train(training)
    return sum(losses) / len(losses)


def _centre(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    top, left = max(0, height - WATCHED_SIDE) // 2, max(0, width - WATCHED_SIDE) // 2
    return image[..., top : top + WATCHED_SIDE, left : left + WATCHED_SIDE]

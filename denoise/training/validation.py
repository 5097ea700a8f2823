"""Validation during training: scores and the loss on the centres of a few images, and an image to look at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from denoise.data.crops import as_floats, collate, random_crop
from denoise.data.dataset import ShardedDataset
from denoise.data.samples import SampleSource, evaluation_pair, make_views
from denoise.denoiser import Denoiser
from denoise.images.io import DecodedImage, write_image
from denoise.images.metrics import psnr, ssim
from denoise.images.tensors import pad, to_pixels, unpad
from denoise.noise import Noise
from denoise.rng import batch_rng

VALIDATION_IMAGES, VALIDATION_SIDE = 8, 256  # the centres of the first images
CENTRE = (0.5, 0.5)
VALIDATION_STEP = -1  # keys the validation noise: the same at every step, and never that of a training step


@dataclass(frozen=True)
class Validator:
    """Validates a denoiser during training, every time on the same images with the same noise.

    Attributes:
        images: the validation images.
        samples: the same as training would read them, for the method's loss; None if that is not wanted.
        noise: what clean images are corrupted with.
        crop: side of a training crop, in pixels of the samples.
        device: that computes.
        folder: where an image of each validation is written.
    """

    images: ShardedDataset
    samples: SampleSource | None
    noise: Noise
    crop: int
    device: torch.device
    folder: Path

    def scores(self, denoiser: Denoiser, step: int) -> dict[str, float]:
        """Return the scores after ``step`` steps (``validate``), and ``val_loss`` if that is wanted."""
        path = self.folder / f"step-{step:06d}.png"
        scores = validate(denoiser, self.images, self.noise, self.device, path)
        if self.samples is not None:
            scores["val_loss"] = validation_loss(denoiser, self.samples, self.noise, self.crop, self.device)
        return scores


def validate(
    denoiser: Denoiser, images: ShardedDataset, noise: Noise, device: torch.device, path: Path
) -> dict[str, float]:
    """Score the centres of the validation images, and write noisy | restored | clean of the first one to ``path``.

    Returns:
        ``val_psnr`` and ``val_ssim``, the means over unrounded images restored in one pass, with the same noise at
        every step; empty if there are no clean images to compare with.
    """
    pairs: list[tuple[float, float]] = []
    with _evaluating(denoiser.net):
        for index in range(min(len(images), VALIDATION_IMAGES)):
            rng = batch_rng(0, VALIDATION_STEP, torch.tensor([index], device=device))
            pair = evaluation_pair(images, index, noise, denoiser.channels, rng, device)
            noisy = _centre(pair.noisy)
            restored = unpad(denoiser(pad(noisy, denoiser.multiple), pair.level, rng), *noisy.shape[-2:])
            panels = [noisy, restored]
            if pair.clean is not None:
                clean = _centre(pair.clean)
                pairs.append((psnr(restored[0], clean[0]), ssim(restored[0], clean[0])))
                panels.append(clean)
            if index == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, DecodedImage(to_pixels(torch.cat(panels, dim=-1)[0])))
    if not pairs:
        return {}
    return {"val_psnr": sum(p for p, _ in pairs) / len(pairs), "val_ssim": sum(s for _, s in pairs) / len(pairs)}


def validation_loss(denoiser: Denoiser, samples: SampleSource, noise: Noise, crop: int, device: torch.device) -> float:
    """Return the method's own loss on the validation images, with the same noise and masks at every step.

    It needs a clean image only where the method does: it can guide training where all images are noisy.

    Args:
        denoiser: the net and its method.
        samples: the validation images, as training would read them.
        noise: what clean images are corrupted with.
        crop: side of a training crop, in pixels of the samples; the sides of the centres are multiples of it.
        device: that computes.
    """
    net, method = denoiser.net, denoiser.method
    side = max(1, VALIDATION_SIDE * noise.scale // crop) * crop
    losses = []
    with _evaluating(net):
        for index in range(min(len(samples), VALIDATION_IMAGES)):
            rng = batch_rng(0, VALIDATION_STEP, torch.tensor([index], device=device))
            centre = {name: random_crop(view, side, CENTRE) for name, view in samples[index].items()}
            views = {name: as_floats(view.to(device)) for name, view in collate([centre], denoiser.channels).items()}
            batch = method.make_batch(make_views(views, method, noise, rng), rng.stream("method"))
            with torch.no_grad():
                losses.append(float(method.loss(net, batch, 1.0)["loss"]))
    return sum(losses) / len(losses)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Put a net into evaluation mode while the block runs."""
    training = net.training
    net.eval()
    yield
    net.train(training)


def _centre(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    top, left = max(0, height - VALIDATION_SIDE) // 2, max(0, width - VALIDATION_SIDE) // 2
    return image[..., top : top + VALIDATION_SIDE, left : left + VALIDATION_SIDE]

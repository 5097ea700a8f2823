"""Validation during training: scores and the loss on the centres of a few images, and an image to look at.

The images are dealt to the ranks, and the first ones kept: they and their noise are the same at every step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from denoise import distributed
from denoise.data.crops import as_floats, collate, random_crop, sides
from denoise.data.dataset import ShardedDataset
from denoise.data.samples import EvaluationPair, SampleSource, Teach, evaluation_pair, make_views
from denoise.denoiser import Denoiser
from denoise.images.io import DecodedImage, write_image
from denoise.images.metrics import psnr, ssim
from denoise.images.tensors import to_pixels
from denoise.methods import Batch
from denoise.noise import Noise
from denoise.precision import autocast
from denoise.rng import Rng, batch_rng
from denoise.tiling import restore_batch

Item = TypeVar("Item")

VALIDATION_SIDE = 256  # of the centres of the images, in pixels
KEPT = 64  # images that a rank keeps in memory, each in 1.6 MB and its batch in as much; it reads others every time
SCORES = ("val_psnr", "val_ssim", "val_mse")
CENTRE = (0.5, 0.5)
VALIDATION_STEP = -1  # keys the validation noise: the same at every step, and never that of a training step


@dataclass(frozen=True)
class Validator:
    """Validates a denoiser during training, every time on the same images with the same noise.

    Attributes:
        images: the validation images.
        samples: the same as training would read them, for the method's loss; None if that is not wanted.
        noise: what clean images are corrupted with.
        crop: side of a training crop, in pixels of the samples; the sides of the centres are multiples of it.
        count: images that are validated on, the first ones; all, if there are fewer.
        device: that computes.
        folder: where rank 0 writes an image of each validation.
        teacher: of a method whose loss needs one.
    """

    images: ShardedDataset
    samples: SampleSource | None
    noise: Noise
    crop: int
    count: int
    device: torch.device
    folder: Path
    teacher: Teach | None = None
    _pairs: dict[int, EvaluationPair] = field(default_factory=dict, compare=False, repr=False)
    _batches: dict[int, Batch] = field(default_factory=dict, compare=False, repr=False)

    def scores(self, denoiser: Denoiser, step: int) -> dict[str, float]:
        """Return the scores after ``step`` steps; every rank must call this, and each restores its share of the images.

        Returns:
            ``val_psnr``, ``val_ssim`` and ``val_mse``, the mean squared error: means over unrounded images restored in
            one pass in the denoiser's precision, unless there are no clean images to compare with; ``val_loss``, the
            method's own loss, if that is wanted: it needs clean images only where the method does. They do not depend
            on the number of ranks.
        """
        distributed.copy_buffers(denoiser.net)
        count = min(len(self.images), self.count)
        # A row for each image: whether it has a clean one, its scores, its loss. Those of other ranks stay 0.
        rows = torch.zeros(count, 2 + len(SCORES), dtype=torch.float64)
        with evaluating(denoiser.net):
            for index in range(distributed.rank(), count, distributed.world_size()):
                rows[index, :-1] = self._score(denoiser, index, step)
                if self.samples is not None:
                    rows[index, -1] = self._loss(denoiser, self.samples, index)
        rows = distributed.total(rows.to(self.device)).cpu()
        scored = rows[rows[:, 0] > 0, 1:-1]
        scores = dict(zip(SCORES, scored.mean(0).tolist(), strict=True)) if len(scored) else {}
        return scores | ({"val_loss": float(rows[:, -1].mean())} if self.samples is not None else {})

    def _score(self, denoiser: Denoiser, index: int, step: int) -> Tensor:
        """Return 1 and the ``SCORES`` of an image, zeros if it has no clean one; write the panels of the first."""
        rng, pair = self._rng(index), self._pair(denoiser, index)
        restored = restore_batch(denoiser, pair.noisy, pair.level, rng)
        panels = [pair.noisy, restored] if pair.clean is None else [pair.noisy, restored, pair.clean]
        if index == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            strip = to_pixels(torch.cat(panels, dim=-1)[0])
            write_image(self.folder / f"step-{step:06d}.png", DecodedImage(strip))
        if pair.clean is None:
            return torch.zeros(1 + len(SCORES), dtype=torch.float64)
        restored, clean = restored[0], pair.clean[0]
        error = (restored.double() - clean.double()).square().mean().item()
        return torch.tensor([1.0, psnr(restored, clean), ssim(restored, clean), error], dtype=torch.float64)

    def _pair(self, denoiser: Denoiser, index: int) -> EvaluationPair:
        """Return the centres of a noisy image and its clean one."""
        if index in self._pairs:
            return self._pairs[index]
        pair = evaluation_pair(
            self.images, index, self.noise, denoiser.channels, self._rng(index), self.device, denoiser.noise_patch
        )
        return _keep(self._pairs, index, _centres(pair))

    def _loss(self, denoiser: Denoiser, samples: SampleSource, index: int) -> float:
        """Return the method's own loss on an image, with the same noise and masks at every step."""
        method, batch = denoiser.method, self._batches.get(index)
        if batch is None:
            batch = _keep(self._batches, index, self._make_batch(denoiser, samples, index))
        with torch.no_grad(), autocast(denoiser.precision, self.device):
            return float(method.loss(denoiser.net, batch, method.validation_progress())["loss"])

    def _make_batch(self, denoiser: Denoiser, samples: SampleSource, index: int) -> Batch:
        method, rng = denoiser.method, self._rng(index)
        sample = samples[index]
        image = max(min(sides(view)) for view in sample.values())  # a view of one value has sides of 1
        side = max(1, min(VALIDATION_SIDE * self.noise.scale, image) // self.crop) * self.crop
        centre = {name: random_crop(view, side, CENTRE) for name, view in sample.items()}
        batch = collate([centre], denoiser.channels)
        views = {name: as_floats(view.to(self.device)) for name, view in batch.items()}
        return method.make_batch(make_views(views, method, self.noise, rng, self.teacher), rng.stream("method"))

    def _rng(self, index: int) -> Rng:
        return batch_rng(0, VALIDATION_STEP, torch.tensor([index]), self.device)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a net into evaluation mode while the block runs."""
    training = net.training
    net.eval()
    yield
    net.train(training)


def _keep(kept: dict[int, Item], index: int, item: Item) -> Item:
    """Keep what belongs to an image, unless there is enough already, and return it."""
    if len(kept) < KEPT:
        kept[index] = item
    return item


def _centres(pair: EvaluationPair) -> EvaluationPair:
    """Return copies of the centres, so that no whole image stays in memory."""
    clean = None if pair.clean is None else _centre(pair.clean).clone()
    return EvaluationPair(_centre(pair.noisy).clone(), pair.level, clean)


def _centre(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    top, left = max(0, height - VALIDATION_SIDE) // 2, max(0, width - VALIDATION_SIDE) // 2
    return image[..., top : top + VALIDATION_SIDE, left : left + VALIDATION_SIDE]

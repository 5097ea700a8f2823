"""Samples by index: clean images to corrupt in every step, fixed noisy realisations of them, or real pairs."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from denoise.config import Config
from denoise.data.dataset import ShardedDataset
from denoise.errors import UserError
from denoise.images.noise_level import PATCH, estimate_sigma
from denoise.images.tensors import as_channels, to_tensor
from denoise.methods import Method, Views, observe
from denoise.noise import Noise
from denoise.rng import Rng, batch_rng

Teach = Callable[[Tensor, Tensor | None, Rng], Tensor]  # noisy (B, C, H, W), its level -> targets (B, T C, H, W)
Sample = Mapping[str, "np.ndarray | Tensor"]  # view -> (H, W, C) pixels as stored, or (C, H, W) floats


class SampleSource(Protocol):
    """Samples by index."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return the views of a sample, all of one size."""
        ...


TAUGHT = "taught"  # the view that a teacher makes of noisy crops, on their device
IMAGE = "image"  # the view of a clean image that the training step corrupts, on its device
FIXED_STEP = -2  # keys fixed noise: no training step has this number
REFERENCES = ("clean", "mean")  # views to compare a restored image with; "mean" is the mean of many exposures
SECOND = ("noisy2", "mean")  # views that are a second observation; a mean of exposures is one with little noise


def open_samples(config: Config, images: ShardedDataset, method: Method, noise: Noise) -> SampleSource:
    """Return the samples that ``method`` learns from; those that cost more than decoding are cached."""
    views, budget = [view for view in method.views() if view != TAUGHT], config.data.cache_mb << 20
    if noise.family == "none":
        real = RealNoise(images, views, config.data.noise_patch, config.data.pairs == "next")
        return CachedSamples(real, budget) if "level" in views else real  # estimating a level is slow
    if config.data.pairs != "stored":
        raise UserError(
            f"data.pairs={config.data.pairs} takes the noise that images have, but noise={noise.name} adds some; give "
            "noise=none, or leave data.pairs out."
        )
    if config.data.fixed_noise:
        return CachedSamples(FixedNoise(images, views, noise, config.data.channels, config.seed), budget)
    return FreshNoise(images)


def crop_side(source: SampleSource, crop: int, noise: Noise) -> int:
    """Return the side to cut out of the samples for training crops of ``crop`` pixels: more if noise reduces sides."""
    return crop * (noise.scale if isinstance(source, FreshNoise) else 1)


@dataclass(frozen=True)
class FreshNoise:
    """Clean images, which the training step corrupts with new noise every time."""

    images: ShardedDataset

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return the clean image of a sample."""
        return {IMAGE: self.images.pixels(index, reference_view(self.images, index))}


@dataclass(frozen=True)
class FixedNoise:
    """One noisy realisation of every image, the same in every epoch, as if the images were noisy originals."""

    images: ShardedDataset
    needs: Collection[str]
    noise: Noise
    channels: int
    seed: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return the views of a sample as floats."""
        pixels = self.images.pixels(index, reference_view(self.images, index))
        image = whole(as_channels(to_tensor(pixels), self.channels)[None], self.noise.scale)
        views = observe(image, self.noise, self.needs, batch_rng(self.seed, FIXED_STEP, torch.tensor([index])))  # type: ignore[arg-type]
        return {name: view[0] for name, view in views.items()}


@dataclass(frozen=True)
class RealNoise:
    """Real noisy images, alone or with a second observation or a clean image of the same scene."""

    images: ShardedDataset
    needs: Collection[str]
    patch: int = PATCH  # side of the patches by which sigma is estimated
    from_next: bool = False  # the second observation is the next frame of the same folder, not one that is stored

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return the views of a sample; ``level`` is the sigma estimated from its noisy image.

        Raises:
            UserError: the sample has no image for a view that is needed.
        """
        noisy = real_noisy(self.images, index)
        sample: dict[str, np.ndarray | Tensor] = {}
        ones = torch.ones(1, 1, 1)
        for view in self.needs:
            if view == "noisy":
                sample[view] = noisy
            elif view == "level":
                sample[view] = ones * estimate_sigma(to_tensor(noisy), self.patch)
            elif view in ("mask", "mask2"):
                sample[view] = ones
            elif view == "noisy2" and self.from_next:
                sample[view] = next_frame(self.images, index)
            else:
                candidates = REFERENCES if view == "clean" else SECOND
                sample[view] = self.images.pixels(index, _first_stored(self.images, index, candidates))
        return sample


class CachedSamples:
    """A cache of samples, at most ``budget`` bytes: the least recently used are dropped. Safe for several threads."""

    def __init__(self, source: SampleSource, budget: int) -> None:
        self.source, self.budget, self.size = source, budget, 0
        self.samples: OrderedDict[int, Sample] = OrderedDict()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Return the views of a sample."""
        with self.lock:
            if index in self.samples:
                self.samples.move_to_end(index)
                return self.samples[index]
        sample = self.source[index]
        with self.lock:
            if index not in self.samples:
                self.samples[index] = sample
                self.size += _bytes(sample)
            while self.size > self.budget and self.samples:
                self.size -= _bytes(self.samples.popitem(last=False)[1])
        return sample


@dataclass(frozen=True)
class EvaluationPair:
    """An image to restore and the clean one to compare the result with, (1, C, H, W) each."""

    noisy: Tensor
    level: Tensor  # (1, 1, 1, 1)
    clean: Tensor | None  # None if there is none


def evaluation_pair(
    images: ShardedDataset,
    index: int,
    noise: Noise,
    channels: int,
    rng: Rng,
    device: torch.device | str = "cpu",
    patch: int = PATCH,
) -> EvaluationPair:
    """Return the noisy and the clean image of a sample: with synthetic noise, or as stored if the noise is real.

    The sigma of real noise is estimated from patches of ``patch`` pixels a side.
    """
    if noise.family == "none":
        pixels = real_noisy(images, index)
        noisy = as_channels(to_tensor(pixels), channels)[None].to(device)
        level = torch.full((1, 1, 1, 1), estimate_sigma(to_tensor(pixels), patch), device=device)
        views = images.views(index)
        references = [view for view in REFERENCES if view in views]
        if len(views) == 1 or not references:
            return EvaluationPair(noisy, level, None)
        reference = to_tensor(images.pixels(index, references[0]))
        return EvaluationPair(noisy, level, as_channels(reference, channels)[None].to(device))
    pixels = images.pixels(index, reference_view(images, index))
    image = whole(as_channels(to_tensor(pixels), channels)[None].to(device), noise.scale)
    observed = noise.corrupt(image, rng)
    return EvaluationPair(observed.noisy, observed.level, noise.reference(image))


def make_views(batch: Views, method: Method, noise: Noise, rng: Rng, teach: Teach | None = None) -> Views:
    """Return the views of a batch that the method needs; clean images are corrupted, and taught, on their device."""
    views = observe(batch[IMAGE], noise, method.views(), rng) if IMAGE in batch else batch
    if teach is None:
        return views
    return {**views, TAUGHT: teach(views["noisy"], views.get("level"), rng.stream("teacher"))}


def whole(image: Tensor, scale: int) -> Tensor:
    """Cut (..., H, W) to sides that are multiples of ``scale``."""
    height, width = image.shape[-2:]
    return image[..., : height // scale * scale, : width // scale * scale]


def reference_view(images: ShardedDataset, index: int) -> str:
    """Return the name of the clean image of a sample; a single image counts as clean."""
    views = images.views(index)
    return views[0] if len(views) == 1 else _first_stored(images, index, REFERENCES)


def real_noisy(images: ShardedDataset, index: int) -> np.ndarray:
    """Return the noisy image (H, W, C) of a sample as stored; a single image counts as noisy."""
    views = images.views(index)
    return images.pixels(index, views[0] if len(views) == 1 else _first_stored(images, index, ("noisy",)))


def next_frame(images: ShardedDataset, index: int) -> np.ndarray:
    """Return the noisy image (H, W, C) of the sample that follows in the same folder, of the last one the one before.

    Raises:
        UserError: there is none, or it has another size.
    """
    other = images.neighbour(index)
    if other is None:
        raise UserError(
            f"{images.name(index)} is the only image of its folder, but data.pairs=next needs the frame before or "
            "after it; put the frames of a burst or series into one folder."
        )
    if images.size(other) != images.size(index):
        (height, width), (other_height, other_width) = images.size(index), images.size(other)
        raise UserError(
            f"{images.name(index)} is {width}x{height} and {images.name(other)} {other_width}x{other_height}, but "
            "data.pairs=next takes the images of a folder for frames of one scene; put other scenes into other folders."
        )
    return real_noisy(images, other)


def _first_stored(images: ShardedDataset, index: int, candidates: tuple[str, ...]) -> str:
    """Return the first of the candidates that a sample of several images has."""
    views = images.views(index)
    for view in candidates if len(views) > 1 else ():
        if view in views:
            return view
    raise UserError(
        f"{images.name(index)} has no image {' or '.join(candidates)} (it has {', '.join(views)}), which this method "
        "needs with this noise; use a set of pairs, or a method that learns from single noisy images such as n2v."
    )


def _bytes(sample: Sample) -> int:
    return sum(view.nbytes for view in sample.values())

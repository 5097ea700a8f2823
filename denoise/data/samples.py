"""What a sample is: a clean picture that is corrupted anew every step, one noisy realisation of it, or a real pair."""

import threading
from collections import OrderedDict
from collections.abc import Collection as Names
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from denoise.config import Config
from denoise.data.dataset import Collection
from denoise.errors import UserError
from denoise.images.noise_level import estimate_sigma
from denoise.images.tensors import as_channels, to_tensor
from denoise.methods import Method, Views, observe
from denoise.noise import Noise
from denoise.rng import Rng, batch_rng

Scene = Mapping[str, "np.ndarray | Tensor"]  # view -> (H, W, C) pixels as they were stored, or (C, H, W) floats


class Scenes(Protocol):
    """Samples by index."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Scene:
        """Return the views of a sample, all of one size."""
        ...


PICTURE = "picture"  # the view of a scene that is corrupted on the device, inside the step
FIXED_STEP = -2  # keys a fixed realisation: no training step's noise
REFERENCES = ("clean", "mean")  # views that a restored picture is compared with; "mean" is the mean of many exposures
SECOND = ("noisy2", "mean")  # views that are a second observation; the mean of many is one, with little noise


def open_scenes(config: Config, pictures: Collection, method: Method, noise: Noise) -> Scenes:
    """Return the samples that ``method`` learns from; what costs more than decoding is kept (``data.cache_mb``)."""
    views, budget = method.views(), config.data.cache_mb << 20
    if noise.family == "none":
        real = RealScenes(pictures, views)
        return Cached(real, budget) if "level" in views else real  # estimating a level takes long
    if config.data.fixed_noise:
        return Cached(FixedScenes(pictures, views, noise, config.data.channels, config.seed), budget)
    return FreshScenes(pictures)


@dataclass(frozen=True)
class FreshScenes:
    """Clean pictures, to be corrupted anew every step."""

    pictures: Collection

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> Scene:
        """Return the clean picture of a sample."""
        return {PICTURE: self.pictures.pixels(index, reference_view(self.pictures, index))}


@dataclass(frozen=True)
class FixedScenes:
    """One noisy realisation of every picture, the same in every epoch: what an owner of noisy pictures has."""

    pictures: Collection
    needs: Names[str]
    noise: Noise
    channels: int
    seed: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> Scene:
        """Return the views of a sample as floats."""
        pixels = self.pictures.pixels(index, reference_view(self.pictures, index))
        picture = whole(as_channels(to_tensor(pixels), self.channels)[None], self.noise.scale)
        views = observe(picture, self.noise, self.needs, batch_rng(self.seed, FIXED_STEP, torch.tensor([index])))  # type: ignore[arg-type]
        return {name: view[0] for name, view in views.items()}


@dataclass(frozen=True)
class RealScenes:
    """Real noisy pictures, alone or with a second observation or a clean picture of the same scene."""

    pictures: Collection
    needs: Names[str]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> Scene:
        """Return the views of a sample; the level is sigma as estimated from its noisy picture."""
        noisy = real_noisy(self.pictures, index)
        scene: dict[str, np.ndarray | Tensor] = {}
        everything = torch.ones(1, 1, 1)
        for view in self.needs:
            if view == "noisy":
                scene[view] = noisy
            elif view == "level":
                scene[view] = everything * estimate_sigma(to_tensor(noisy))
            elif view in ("mask", "mask2"):
                scene[view] = everything
            else:
                wanted = REFERENCES if view == "clean" else SECOND
                scene[view] = self.pictures.pixels(index, _stored(self.pictures, index, wanted))
        return scene


class Cached:
    """Scenes, the least recently used dropped when they outgrow a budget; several threads may ask at once."""

    def __init__(self, scenes: Scenes, budget: int) -> None:
        self.scenes, self.budget, self.size = scenes, budget, 0
        self.kept: OrderedDict[int, Scene] = OrderedDict()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        """Return the views of a sample."""
        with self.lock:
            if index in self.kept:
                self.kept.move_to_end(index)
                return self.kept[index]
        scene = self.scenes[index]
        with self.lock:
            if index not in self.kept:
                self.kept[index] = scene
                self.size += _bytes(scene)
            while self.size > self.budget and self.kept:
                self.size -= _bytes(self.kept.popitem(last=False)[1])
        return scene


@dataclass(frozen=True)
class Trial:
    """A picture to restore, and what the restored picture is compared with; (1, C, H, W) each."""

    noisy: Tensor
    level: Tensor  # (1, 1, 1, 1)
    clean: Tensor | None  # None where there is none


def trial(
    pictures: Collection, index: int, noise: Noise, channels: int, rng: Rng, device: torch.device | str = "cpu"
) -> Trial:
    """Return the noisy and the clean picture of a sample: with synthetic noise, or as a real pair has them."""
    if noise.family == "none":
        pixels = real_noisy(pictures, index)
        noisy = as_channels(to_tensor(pixels), channels)[None].to(device)
        level = torch.full((1, 1, 1, 1), estimate_sigma(to_tensor(pixels)), device=device)
        names = [view for view in REFERENCES if view in pictures.views(index)]
        if len(pictures.views(index)) == 1 or not names:
            return Trial(noisy, level, None)
        return Trial(noisy, level, as_channels(to_tensor(pictures.pixels(index, names[0])), channels)[None].to(device))
    pixels = pictures.pixels(index, reference_view(pictures, index))
    picture = whole(as_channels(to_tensor(pixels), channels)[None].to(device), noise.scale)
    seen = noise.corrupt(picture, rng)
    return Trial(seen.noisy, seen.level, noise.reference(picture))


def as_views(batch: Views, method: Method, noise: Noise, rng: Rng) -> Views:
    """Return what the method may see of a batch of scenes; clean pictures are corrupted here, on their device."""
    return observe(batch[PICTURE], noise, method.views(), rng) if PICTURE in batch else batch


def whole(picture: Tensor, scale: int) -> Tensor:
    """Cut (..., H, W) to sides that are multiples of ``scale``."""
    height, width = picture.shape[-2:]
    return picture[..., : height // scale * scale, : width // scale * scale]


def reference_view(pictures: Collection, index: int) -> str:
    """Return the name of the clean picture of a sample; a lone picture counts as clean."""
    views = pictures.views(index)
    return views[0] if len(views) == 1 else _stored(pictures, index, REFERENCES)


def real_noisy(pictures: Collection, index: int) -> np.ndarray:
    """Return the noisy picture (H, W, C) of a sample as it was taken; a lone picture counts as noisy."""
    views = pictures.views(index)
    return pictures.pixels(index, views[0] if len(views) == 1 else _stored(pictures, index, ("noisy",)))


def _stored(pictures: Collection, index: int, wanted: tuple[str, ...]) -> str:
    views = pictures.views(index)
    for view in wanted if len(views) > 1 else ():
        if view in views:
            return view
    raise UserError(
        f"{pictures.name(index)} has no picture {' or '.join(wanted)} (it has {', '.join(views)}), which this method "
        "needs with this noise; use a set of pairs, or a method that learns from single noisy pictures such as n2v."
    )


def _bytes(scene: Scene) -> int:
    return sum(view.nbytes for view in scene.values())

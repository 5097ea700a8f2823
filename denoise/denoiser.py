"""Denoiser, a trained net with the method that knows how to use it, and the model folder, both of them on disk.

A model folder holds net.safetensors, the weights, and model.json, everything else; nothing is ever pickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from denoise.data.augment import Symmetry, symmetry_group
from denoise.errors import UserError, first_line
from denoise.files import write_folder, write_json
from denoise.images.noise_level import estimate_sigma
from denoise.methods import METHODS, Method, build_method
from denoise.nets import NetMaker, multiple_of
from denoise.noise import Noise, parse_noise
from denoise.rng import Rng, batch_rng

FORMAT = 1
CARD, WEIGHTS = "model.json", "net.safetensors"
ModelCard = Mapping[str, Any]  # the content of model.json: how to rebuild the net, and where the weights come from


@dataclass(frozen=True)
class Denoiser:
    """A trained net with the method that knows how to use it."""

    net: nn.Module
    method: Method
    card: ModelCard
    passes: int | None = None  # passes averaged for each image; None: as many as the method's paper averages
    symmetries: tuple[Symmetry, ...] = (Symmetry(),)  # flips and turns averaged over
    deviation: float = 0.0  # if not 0: return the standard deviation of the restored values, times this, instead

    @property
    def name(self) -> str:
        """The method's command-line name."""
        return str(self.card["method"]["name"])

    @property
    def noise(self) -> str:
        """The noise the net was trained for, e.g. ``gauss25``."""
        return str(self.card["noise"])

    @property
    def channels(self) -> int:
        """3 for colour, 1 for grey."""
        return int(self.card["channels"])

    @property
    def multiple(self) -> int:
        """Both sides of the input must be multiples of this."""
        return multiple_of(self.net)

    @property
    def needs_level(self) -> bool:
        """Whether restoring needs the noise level."""
        return self.method.needs_level()

    def __call__(self, noisy: Tensor, level: Tensor | None = None, rng: Rng | None = None) -> Tensor:
        """Restore a batch (B, C, H, W) in [0, 1] whose sides are multiples of ``multiple``.

        Args:
            noisy: the images.
            level: of their noise, (B, 1, 1, 1); if the method needs it and it is None, ``level_of`` each image.
            rng: the randomness of methods that have some at test time; by default keyed by the position in the batch.

        Returns:
            The restored images, float32 (B, C, H, W).
        """
        rng = rng or batch_rng(0, 0, torch.arange(len(noisy), device=noisy.device))
        if level is None and self.needs_level:
            level = torch.stack([torch.full((1, 1, 1), self.level_of(image), device=noisy.device) for image in noisy])
        with torch.inference_mode():
            if self.deviation:
                return self.deviation * self.method.deviation(self.net, noisy, level).float()
            passes = self.passes or self.method.test_time_passes()
            restored = torch.zeros_like(noisy, dtype=torch.float32)
            for number in range(passes):
                for symmetry in self.symmetries:
                    key = rng.stream(f"pass {number} {symmetry}")
                    restored += symmetry.undo(self.method.predict(self.net, symmetry.apply(noisy), level, key).float())
            return restored / (passes * len(self.symmetries))

    def level_of(self, noisy: Tensor) -> float:
        """Return the noise level to assume for an image (C, H, W): that of the training noise, else an estimate."""
        trained_for = parse_noise(self.noise).level
        return estimate_sigma(noisy) if trained_for is None else trained_for

    def averaging(self) -> "Denoiser":
        """Return a denoiser that also averages over the flips and turns that training augmented with."""
        return replace(self, symmetries=tuple(symmetry_group(self.card["config"]["train"]["augment"])))


def make_card(config: Mapping[str, Any], channels: int, **provenance: Any) -> ModelCard:
    """Return the card of a net trained with ``config`` (plain data); ``provenance`` says where it comes from."""
    return {
        "format": FORMAT,
        "method": config["method"],
        "net": config["net"],
        "channels": channels,
        "noise": config["noise"],
        "provenance": provenance,
        "config": dict(config),
    }


def save_model(folder: Path, net: nn.Module, card: ModelCard) -> None:
    """Write a model folder, replacing an older one of that name.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    write_folder(folder, lambda work: _write_model(work, net, card))


def load_denoiser(folder: Path, device: torch.device | str = "cpu") -> Denoiser:
    """Return the denoiser of a model or checkpoint folder.

    Raises:
        UserError: the folder is not a model folder, or its files are damaged.
    """
    card = read_card(folder)
    try:
        method = build_method(card["method"]["name"], card["method"]["fields"], parse_noise(card["noise"]))
        net = method.make_net(NetMaker(card["net"]["name"], card["channels"], card["net"]["fields"]))
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, TypeError, RuntimeError, SafetensorError, OSError) as error:
        raise UserError(f"the model in {folder} is damaged: {first_line(error)}; fetch or train it again.") from None
    return Denoiser(net.to(device).eval(), method, card)


def untrained_denoiser(
    name: str, fields: Mapping[str, Any], channels: int, noise: Noise, device: torch.device | str = "cpu"
) -> Denoiser:
    """Return the denoiser of a method that needs no training, such as ``bm3d``, for images with that noise.

    Raises:
        UserError: an unknown method, or one that has to be trained first.
    """
    method = build_method(name, fields, noise)
    if method.trained:
        untrained = ", ".join(key for key, method_class in METHODS.items() if not method_class.trained)
        raise UserError(f"{name} has to be trained first (denoise train method={name}); without training: {untrained}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = method.make_net(NetMaker(method.net, channels, {}))
    config = {
        "method": {"name": name, "fields": dict(fields)},
        "net": {"name": method.net, "fields": {}},
        "noise": noise.name,
        "train": {"augment": []},
    }
    card = make_card(config, channels)
    return Denoiser(net.to(device).eval(), method, card)


def _write_model(work: Path, net: nn.Module, card: ModelCard) -> None:
    (work / WEIGHTS).write_bytes(save({name: to_host(tensor) for name, tensor in net.state_dict().items()}))
    write_json(work / CARD, dict(card))


def to_host(tensor: Tensor) -> Tensor:
    """Return a copy in the host's memory, contiguous as safetensors wants it."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of a model or checkpoint folder.

    Raises:
        UserError: there is no card, or one of another format.
    """
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} is no model folder: it has no {CARD}; give a folder that `denoise train` made.")
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
        version = card["format"]
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{folder / CARD} is not a model card; give a folder that `denoise train` made.") from None
    if version != FORMAT:
        raise UserError(f"{folder} has format {version}, this version of denoise reads format {FORMAT}; update it.")
    return card

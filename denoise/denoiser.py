"""Denoiser, a trained net with the method that knows how to use it, and the model folder, both of them on disk.

A model folder holds net.safetensors, the weights, and model.json, everything else; nothing is ever pickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from denoise.data.augment import Symmetry, symmetry_group
from denoise.errors import UserError, first_line
from denoise.files import write_folder, write_json
from denoise.images.noise_level import PATCH, estimate_sigma
from denoise.images.tensors import pad
from denoise.images.tiles import Tiles
from denoise.methods import METHODS, Method, build_method
from denoise.model_files import CARD, FORMAT, WEIGHTS, ModelCard, model_digest, read_card
from denoise.nets import NetMaker, multiple_of
from denoise.noise import Noise, parse_noise
from denoise.precision import autocast
from denoise.rng import Rng, batch_rng
from denoise.stacks.value_range import ValueRange

__all__ = [
    "CARD",
    "FORMAT",
    "WEIGHTS",
    "Denoiser",
    "ModelCard",
    "load_denoiser",
    "make_card",
    "model_digest",
    "read_card",
    "require_finite",
    "save_model",
    "to_host",
    "untrained_denoiser",
]

# Of a net that names no number of its own: a U-Net takes 0.4 kB of memory a pixel in bf16 (0.7 in fp32), drunet 0.8.
PIXELS_PER_PASS = 1280 * 1024
PIXELS_UNTRAINED = 512 * 512
ENOUGH_CONTEXT = 256  # side of the crops from which a blind-spot net learns enough to restore whole images
DTYPES = {torch.float32: "F32", torch.int64: "I64"}  # of the nets' tensors, and their names in safetensors
# What building a net from a card that lies, or reading a damaged file, raises.
DAMAGE = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)


@dataclass(frozen=True)
class Denoiser:
    """A trained net with the method that knows how to use it."""

    net: nn.Module
    method: Method
    card: ModelCard
    passes: int | None = None  # passes averaged for each image; None: as many as the method's paper averages
    symmetries: tuple[Symmetry, ...] = (Symmetry(),)  # flips and turns averaged over
    deviation: float = 0.0  # if not 0: return the standard deviation of the restored values, times this, instead
    precision: str = "fp32"  # that the net computes in: fp32, bf16, or auto: bf16 if the hardware has it
    tile: int | None = None  # side of the tiles that images are restored by; None: whole, unless the net needs tiles
    overlap: int | None = None  # of these tiles, at least; None: 64, at most half of a tile
    digest: str | None = None  # sha256 of the model folder; None where there is none
    folder: Path | None = None  # the model folder

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
    def value_range(self) -> ValueRange | None:
        """The values that were 0 and 1 in training; None: the ends of each image's type."""
        stored = self.card.get("range")
        return None if stored is None else ValueRange(stored["low"], stored["high"])

    @property
    def multiple(self) -> int:
        """Both sides of the input must be multiples of this."""
        return multiple_of(self.net)

    @property
    def pixels_per_pass(self) -> int:
        """How many pixels of an image may be restored in one pass, so that 1 to 2 GB of memory suffice in bf16."""
        if not self.method.trained:
            return PIXELS_UNTRAINED
        return min(int(getattr(part, "pixels_per_pass", PIXELS_PER_PASS)) for part in self.net.modules())

    @property
    def tiles(self) -> Tiles | None:
        """How images are restored by tiles; None where whole images are.

        A blind-spot net that pools restores what it sees more of than in training with an error of brightness. So its
        tiles are as large as its training crops, unless these have at least 256 pixels or ``tile`` is given.

        Raises:
            UserError: ``tile`` and ``overlap`` do not fit together.
        """
        side = _side_of_context(self.net, self.card) if self.tile is None else self.tile
        return None if side is None else Tiles(self.multiple, self.pixels_per_pass, side, self.overlap, exact=True)

    @property
    def noise_patch(self) -> int:
        """The side of the patches by which the sigma of real noise is estimated: as in training."""
        return int(self.card["config"].get("data", {}).get("noise_patch", PATCH))

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
        rng = rng or batch_rng(0, 0, torch.arange(len(noisy)), noisy.device)
        if level is None and self.needs_level:
            level = torch.stack([torch.full((1, 1, 1), self.level_of(image), device=noisy.device) for image in noisy])
        noisy = noisy.contiguous(memory_format=torch.channels_last)  # as the net's weights are
        # What needs no training, such as BM3D, computes with numbers that bf16 would spoil.
        precision = self.precision if self.method.trained else "fp32"
        with torch.inference_mode(), autocast(precision, noisy.device):
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
        return estimate_sigma(noisy, self.noise_patch) if trained_for is None else trained_for

    def estimated_level(self, noisy: Tensor) -> float | None:
        """Return the noise level that the net itself finds in an image (1, C, H, W), None where it finds none."""
        noisy = pad(noisy, self.multiple).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), autocast(self.precision, noisy.device):
            level = self.method.estimated_level(self.net, noisy)
        return None if level is None else float(level)

    def averaging(self) -> "Denoiser":
        """Return a denoiser that also averages over the flips and turns that training augmented with."""
        return replace(self, symmetries=tuple(symmetry_group(self.card["config"].get("train", {}).get("augment", ()))))


def make_card(
    config: Mapping[str, Any], channels: int, value_range: ValueRange | None = None, **provenance: Any
) -> ModelCard:
    """Return the card of a net trained with ``config`` (plain data); ``provenance`` says where it comes from."""
    ranged = {} if value_range is None else {"range": {"low": value_range.low, "high": value_range.high}}
    return {
        "format": FORMAT,
        "method": config["method"],
        "net": config["net"],
        "channels": channels,
        "noise": config["noise"],
        "provenance": provenance,
        "config": dict(config),
        **ranged,
    }


def save_model(folder: Path, net: nn.Module, card: ModelCard) -> None:
    """Write a model folder, replacing an older one of that name.

    Raises:
        UserError: a weight is not finite, the disk is full or the folder is not writable.
    """
    require_finite(net.state_dict(), f"the model for {folder}")
    write_folder(folder, lambda work: _write_model(work, net, card))


def load_denoiser(folder: Path, device: torch.device | str = "cpu") -> Denoiser:
    """Return the denoiser of a model or checkpoint folder.

    The net takes memory once the header of its file has shown that this file holds the weights of this net.

    Raises:
        UserError: the folder is not a model folder, its files are damaged, or a weight is not finite.
    """
    card = read_card(folder)
    try:
        method = build_method(card["method"]["name"], card["method"]["fields"], parse_noise(card["noise"]))
        with torch.device("meta"):
            net = method.make_net(NetMaker(card["net"]["name"], card["channels"], card["net"]["fields"]))
        weights = _read_weights(folder / WEIGHTS, net.state_dict())
    except UserError as error:
        raise UserError(f"the model in {folder} cannot be used: {first_line(error)}.") from None
    except DAMAGE as error:
        raise UserError(f"the model in {folder} is damaged: {first_line(error)}; fetch or train it again.") from None
    require_finite(weights, f"the model in {folder}")
    net.to_empty(device="cpu").load_state_dict(weights)
    return Denoiser(_ready(net, device), method, card, digest=model_digest(folder), folder=folder)


def require_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """Check that no weight is infinite or not a number.

    Raises:
        UserError: one is; the message names the tensor.
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{what} has weights that are not finite ({name}), so its training diverged; "
                "train again with a smaller train.lr."
            )


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
    return Denoiser(_ready(net, device), method, card)


def _side_of_context(net: nn.Module, card: ModelCard) -> int | None:
    """Return the side of the tiles that a net needs: its training crop's, at least two of what its pooling needs."""
    crop, multiple = card["config"].get("train", {}).get("crop"), multiple_of(net)
    blind = any(getattr(part, "blind_spot", False) for part in net.modules())
    if not blind or multiple == 1 or not isinstance(crop, int) or crop >= ENOUGH_CONTEXT:
        return None
    return max(crop // multiple, 2) * multiple  # a tile of one multiple has no room for an overlap


def _ready(net: nn.Module, device: torch.device | str) -> nn.Module:
    """Put a net on its device, with the weights in the layout in which convolutions are fastest."""
    return net.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def _write_model(work: Path, net: nn.Module, card: ModelCard) -> None:
    (work / WEIGHTS).write_bytes(save({name: to_host(tensor) for name, tensor in net.state_dict().items()}))
    write_json(work / CARD, dict(card))


def to_host(tensor: Tensor) -> Tensor:
    """Return a copy in the host's memory, contiguous as safetensors wants it."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _read_weights(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, once its header has shown the names, shapes and types of a net."""
    with safe_open(file, framework="pt") as weights:
        different = sorted(expected.keys() ^ set(weights.keys()))
        if different:
            raise ValueError(f"{file.name} and the net of {CARD} differ in the tensor {different[0][:100]}")
        for name, tensor in expected.items():
            entry = weights.get_slice(name)
            stored, wanted = (entry.get_dtype(), *entry.get_shape()), (DTYPES[tensor.dtype], *tensor.shape)
            if stored != wanted:
                raise ValueError(f"{name} is {stored} in {file.name}, {wanted} in the net of {CARD}")
        return {name: weights.get_tensor(name) for name in expected}

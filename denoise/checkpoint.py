"""Checkpoints and models on disk: weights as safetensors, everything else as JSON, never pickle.

A model folder holds model.json and net.safetensors. A checkpoint folder is a model folder that also holds the
optimizer, the training state and the metrics so far, and a manifest of sha256 sums, written last. Both appear under
their name in one rename, so that a reader never meets a half-written one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from denoise.augment import Symmetry, symmetries
from denoise.errors import UserError
from denoise.files import file_digest, json_text, write_folder, write_json
from denoise.methods import METHODS, Method, build_method
from denoise.nets import NetMaker, multiple_of
from denoise.noise import Noise, parse_noise
from denoise.noise_level import estimate_sigma
from denoise.rng import Rng, batch_rng

FORMAT = 1
CARD, WEIGHTS = "model.json", "net.safetensors"
OPTIMIZER, STATE, HISTORY, MANIFEST = "optimizer.safetensors", "state.json", "metrics.jsonl", "manifest.json"
RAW = "raw.safetensors"  # the weights being trained, where the model's are a running average of them

Card = Mapping[str, Any]  # what model.json holds: how to rebuild the net, and where the weights come from


@dataclass(frozen=True)
class Denoiser:
    """A trained net with the method that knows how to use it."""

    net: nn.Module
    method: Method
    card: Card
    passes: int | None = None  # averaged a picture; None: as many as the method's paper averages
    over: tuple[Symmetry, ...] = (Symmetry(),)  # symmetries that are averaged over
    deviation: float = 0.0  # return the standard deviation of the restored values, times this, in their place

    @property
    def name(self) -> str:
        """The method's command-line name."""
        return str(self.card["method"]["name"])

    @property
    def noise(self) -> str:
        """The noise it was trained for, e.g. ``gauss25``."""
        return str(self.card["noise"])

    @property
    def channels(self) -> int:
        """3 for colour, 1 for grey."""
        return int(self.card["channels"])

    @property
    def multiple(self) -> int:
        """What both sides of its input must be multiples of."""
        return multiple_of(self.net)

    @property
    def needs_level(self) -> bool:
        """Whether it cannot restore without the noise level."""
        return self.method.needs_level()

    def __call__(self, noisy: Tensor, level: Tensor | None = None, rng: Rng | None = None) -> Tensor:
        """Restore a batch (B, C, H, W) in [0, 1] whose sides are multiples of ``multiple``.

        Args:
            noisy: the pictures.
            level: of their noise, (B, 1, 1, 1); where a method needs it and it is not given, ``level_of`` decides.
            rng: the randomness of methods that have some at test time, keyed by the place in the batch by default.
        """
        rng = rng or batch_rng(0, 0, torch.arange(len(noisy), device=noisy.device))
        if level is None and self.needs_level:
            level = torch.stack([torch.full((1, 1, 1), self.level_of(one), device=noisy.device) for one in noisy])
        with torch.inference_mode():
            if self.deviation:
                return self.deviation * self.method.deviation(self.net, noisy, level).float()
            passes = self.passes or self.method.passes_at_test()
            restored = torch.zeros_like(noisy, dtype=torch.float32)
            for number in range(passes):
                for symmetry in self.over:
                    key = rng.stream(f"pass {number} {symmetry}")
                    restored += symmetry.undo(self.method.predict(self.net, symmetry.apply(noisy), level, key).float())
            return restored / (passes * len(self.over))

    def level_of(self, noisy: Tensor) -> float:
        """Return the noise level to assume for a picture (C, H, W): what it was trained for, else an estimate."""
        known = parse_noise(self.noise).level
        return estimate_sigma(noisy) if known is None else known

    def averaging(self) -> "Denoiser":
        """Return this denoiser, averaging over the flips and turns that its training was augmented with."""
        return replace(self, over=tuple(symmetries(self.card["config"]["train"]["augment"])))


def make_card(config: Mapping[str, Any], channels: int, **provenance: Any) -> Card:
    """Return the card of a net trained with ``config`` (plain data); ``provenance`` says on what, and for how long."""
    return {
        "format": FORMAT,
        "method": config["method"],
        "net": config["net"],
        "channels": channels,
        "noise": config["noise"],
        "provenance": provenance,
        "config": dict(config),
    }


def save_model(folder: Path, net: nn.Module, card: Card) -> None:
    """Write a model folder, replacing an older one of that name."""
    write_folder(folder, lambda work: _write_model(work, net, card))


def load_denoiser(folder: Path, device: torch.device | str = "cpu") -> Denoiser:
    """Return the denoiser of a model or checkpoint folder.

    Raises:
        UserError: the folder is no model, or its files do not fit together.
    """
    card = read_card(folder)
    try:
        method = build_method(card["method"]["name"], card["method"]["fields"], parse_noise(card["noise"]))
        net = method.make_net(NetMaker(card["net"]["name"], card["channels"], card["net"]["fields"]))
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, TypeError, RuntimeError, SafetensorError, OSError) as error:
        raise UserError(f"the model in {folder} is damaged: {_first_line(error)}; fetch or train it again.") from None
    return Denoiser(net.to(device).eval(), method, card)


def untrained_denoiser(
    name: str, fields: Mapping[str, Any], channels: int, noise: Noise, device: torch.device | str = "cpu"
) -> Denoiser:
    """Return the denoiser of a method that needs no training, such as ``bm3d``, for pictures with that noise.

    Raises:
        UserError: a method that is not known or has to be trained first.
    """
    method = build_method(name, fields, noise)
    if method.trained:
        able = ", ".join(key for key, known in METHODS.items() if not known.trained)
        raise UserError(f"{name} has to be trained first (denoise train method={name}); without training: {able}.")
    choice = {"name": method.net, "fields": {}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = method.make_net(NetMaker(method.net, channels, {}))
    config = {"method": {"name": name, "fields": dict(fields)}, "net": choice, "noise": noise.name}
    card = make_card({**config, "train": {"augment": []}}, channels)
    return Denoiser(net.to(device).eval(), method, card)


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint folder after ``step`` steps; names sort like steps."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Training:
    """What a training run carries from step to step."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None  # of the net's weights

    @property
    def model(self) -> nn.Module:
        """The net that the model is made of: the averaged one where there is an average."""
        return self.net if self.average is None else self.average.module


@dataclass(frozen=True)
class Done:
    """How far a run has come."""

    step: int = 0  # steps done
    samples: str = ""  # digest of the samples that were learnt from (``SampleLog``)
    history: Sequence[Mapping[str, Any]] = ()  # the metrics so far
    sums: Mapping[str, float] = field(default_factory=dict)  # of the loss terms since the last row of the history
    counted: int = 0  # steps in these sums


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, copied at one moment: what trains on meanwhile does not change it."""

    tensors: Mapping[str, Mapping[str, Tensor]]  # file -> name -> values
    texts: Mapping[str, str]  # file -> content

    def write(self, work: Path) -> None:
        """Write the files into an empty folder, and then their manifest."""
        for name, tensors in self.tensors.items():
            (work / name).write_bytes(save(dict(tensors)))
        for name, text in self.texts.items():
            (work / name).write_text(text, encoding="utf-8")
        write_json(work / MANIFEST, {path.name: file_digest(path) for path in sorted(work.iterdir())})


def snapshot(training: Training, done: Done, card: Card) -> Snapshot:
    """Return a copy of the nets and the optimizer, in the host's memory, with what has been done so far."""
    optimizer, groups = _flatten_optimizer(training.optimizer)
    tensors = {WEIGHTS: training.model.state_dict(), OPTIMIZER: optimizer}
    if training.average is not None:
        tensors[RAW] = training.net.state_dict()
    progress = {"step": done.step, "samples": done.samples, "sums": dict(done.sums), "counted": done.counted}
    state = {"format": FORMAT, **progress, "param_groups": groups}
    texts = {
        CARD: json_text(dict(card)),
        STATE: json_text(state),
        HISTORY: "".join(json.dumps(row) + "\n" for row in done.history),
    }
    return Snapshot({file: {name: _copy(value) for name, value in one.items()} for file, one in tensors.items()}, texts)


def load_checkpoint(folder: Path, training: Training) -> Done:
    """Put a checkpoint's weights and optimizer state in place and return how far it had come.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    problem = damage(folder)
    if problem:
        raise UserError(f"checkpoint {folder} is damaged: {problem}; delete it to go on from an older one.")
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    training.model.load_state_dict(load_file(folder / WEIGHTS))
    if training.average is not None:
        training.net.load_state_dict(load_file(folder / RAW))
    _restore_optimizer(training.optimizer, load_file(folder / OPTIMIZER), state["param_groups"])
    return Done(state["step"], state["samples"], read_history(folder), state["sums"], state["counted"])


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics that a checkpoint or model folder holds, one row a report."""
    return [json.loads(line) for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines()]


def damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint, or return an empty string for a sound one."""
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    unlisted = {CARD, WEIGHTS, OPTIMIZER, STATE, HISTORY} - manifest.keys()
    if unlisted:
        return f"{MANIFEST} does not list {min(unlisted)}"
    for name, digest in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != digest:
            return f"{name} has another sha256 than its manifest says"
    return ""


def _write_model(work: Path, net: nn.Module, card: Card) -> None:
    (work / WEIGHTS).write_bytes(save({name: _copy(tensor) for name, tensor in net.state_dict().items()}))
    write_json(work / CARD, dict(card))


def _copy(tensor: Tensor) -> Tensor:
    """Return the values in memory of their own, on the host, row by row as safetensors wants them."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of a model or checkpoint folder."""
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


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entries in state["state"].items()
        for name, value in entries.items()
    }
    return tensors, state["param_groups"]


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        like = parameters[int(index)]
        # Fused optimizers run through the memory of a parameter and of its state side by side: the layouts must agree.
        same = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[name] = same
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__

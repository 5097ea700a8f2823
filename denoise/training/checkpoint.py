"""Checkpoints on disk: the state to train on from, as safetensors and JSON, never pickle.

A checkpoint folder is a model folder (``denoise.denoiser``) that also holds the optimizer, how far the run has come,
the metrics so far, and, written last, a manifest of sha256 sums. It is written under a temporary name and renamed, so
that a reader never meets half of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from denoise.denoiser import CARD, FORMAT, WEIGHTS, ModelCard, to_host
from denoise.errors import UserError
from denoise.files import file_digest, json_text, write_json

OPTIMIZER, STATE, HISTORY, MANIFEST = "optimizer.safetensors", "state.json", "metrics.jsonl", "manifest.json"
RAW = "raw.safetensors"  # the trained weights, if the model's are a running average of them


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint folder after ``step`` steps; names sort like steps."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class TrainState:
    """What a training run carries from step to step: all that an optimizer step changes."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None  # of the net's weights

    @property
    def model(self) -> nn.Module:
        """The net that becomes the model: the averaged one if there is an average."""
        return self.net if self.average is None else self.average.module


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come."""

    step: int = 0  # steps done
    samples: str = ""  # digest of the samples that were read (``SampleLog``)
    history: Sequence[Mapping[str, Any]] = ()  # the metrics so far
    sums: Mapping[str, float] = field(default_factory=dict)  # of the loss terms since the last row of the history
    counted: int = 0  # steps in these sums


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, as a copy that further training does not change."""

    tensors: Mapping[str, Mapping[str, Tensor]]  # file -> name -> values
    texts: Mapping[str, str]  # file -> content

    def write(self, folder: Path) -> None:
        """Write the files into an empty folder, and then their manifest."""
        for name, tensors in self.tensors.items():
            (folder / name).write_bytes(save(dict(tensors)))
        for name, text in self.texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_json(folder / MANIFEST, {path.name: file_digest(path) for path in sorted(folder.iterdir())})


def snapshot(train_state: TrainState, progress: RunProgress, card: ModelCard) -> Snapshot:
    """Return a copy, in the host's memory, of the nets and the optimizer, with the progress and the model card."""
    optimizer, groups = _flatten_optimizer(train_state.optimizer)
    tensors = {WEIGHTS: train_state.model.state_dict(), OPTIMIZER: optimizer}
    if train_state.average is not None:
        tensors[RAW] = train_state.net.state_dict()
    state = {
        "format": FORMAT,
        "step": progress.step,
        "samples": progress.samples,
        "sums": dict(progress.sums),
        "counted": progress.counted,
        "param_groups": groups,
    }
    texts = {
        CARD: json_text(dict(card)),
        STATE: json_text(state),
        HISTORY: "".join(json.dumps(row) + "\n" for row in progress.history),
    }
    copies = {file: {name: to_host(value) for name, value in values.items()} for file, values in tensors.items()}
    return Snapshot(copies, texts)


def load_checkpoint(folder: Path, train_state: TrainState) -> RunProgress:
    """Load the weights and the optimizer's state into ``train_state`` and return how far the run had come.

    Raises:
        UserError: the checkpoint is damaged.
    """
    problem = damage(folder)
    if problem:
        raise UserError(f"checkpoint {folder} is damaged: {problem}; delete it to resume from an older one.")
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    train_state.model.load_state_dict(load_file(folder / WEIGHTS))
    if train_state.average is not None:
        train_state.net.load_state_dict(load_file(folder / RAW))
    _restore_optimizer(train_state.optimizer, load_file(folder / OPTIMIZER), state["param_groups"])
    return RunProgress(state["step"], state["samples"], read_history(folder), state["sums"], state["counted"])


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics that a checkpoint or model folder holds."""
    return [json.loads(line) for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines()]


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint, an empty string if it is intact."""
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
        # Fused optimizers walk the memory of a parameter and of its state in parallel: the layouts must agree.
        aligned = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[name] = aligned
    optimizer.load_state_dict({"state": state, "param_groups": groups})

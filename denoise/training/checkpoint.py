"""Checkpoints and models on disk: weights as safetensors, everything else as JSON, never pickle.

A model folder holds model.json and net.safetensors. A checkpoint folder is a model folder that also holds the
optimizer, the training state and the metrics so far, and a manifest of sha256 sums, written last. Both appear under
their name in one rename, so that a reader never meets a half-written one.
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

from denoise.denoiser import CARD, FORMAT, WEIGHTS, ModelCard, _copy
from denoise.errors import UserError
from denoise.files import file_digest, json_text, write_json

OPTIMIZER, STATE, HISTORY, MANIFEST = "optimizer.safetensors", "state.json", "metrics.jsonl", "manifest.json"
RAW = "raw.safetensors"  # the weights being trained, where the model's are a running average of them


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint folder after ``step`` steps; names sort like steps."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class TrainState:
    """What a training run carries from step to step."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None  # of the net's weights

    @property
    def model(self) -> nn.Module:
        """The net that the model is made of: the averaged one where there is an average."""
        return self.net if self.average is None else self.average.module


@dataclass(frozen=True)
class RunProgress:
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


def snapshot(training: TrainState, done: RunProgress, card: ModelCard) -> Snapshot:
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


def load_checkpoint(folder: Path, training: TrainState) -> RunProgress:
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
    return RunProgress(state["step"], state["samples"], read_history(folder), state["sums"], state["counted"])


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

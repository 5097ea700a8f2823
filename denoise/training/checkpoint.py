"""Checkpoints on disk: the state to train on from, as safetensors and JSON, never pickle.

A checkpoint folder is a model folder (``denoise.denoiser``) that also holds the optimizer, how far the run has come,
the metrics so far, and, written last, a manifest of sha256 sums. It is written under a temporary name and renamed, so
that a reader never meets half of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from denoise.denoiser import CARD, FORMAT, WEIGHTS, ModelCard, to_host
from denoise.documents import parse_json
from denoise.errors import UserError, first_line
from denoise.fields import Count
from denoise.files import file_digest, is_sha256, json_line, json_text, write_json
from denoise.model_files import TRAINING_IMAGES
from denoise.training.optimizers import AveragedWeights

OPTIMIZER, STATE, HISTORY, MANIFEST = "optimizer.safetensors", "state.json", "metrics.jsonl", "manifest.json"
RAW = "raw.safetensors"  # the trained weights, if the model's are a running average of them
REQUIRED = {CARD, WEIGHTS, OPTIMIZER, STATE, HISTORY}
FILES = REQUIRED | {RAW, TRAINING_IMAGES}  # all that a manifest may list


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint folder after ``step`` steps; names sort like steps."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class TrainState:
    """What a training run carries from step to step: all that an optimizer step changes."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedWeights | None = None  # of the net's weights

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
    contents: Mapping[str, bytes]  # file -> content, of the other files

    def write(self, folder: Path) -> None:
        """Write the files into an empty folder, and then their manifest."""
        for name, tensors in self.tensors.items():
            (folder / name).write_bytes(save(dict(tensors)))
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        write_json(folder / MANIFEST, {path.name: file_digest(path) for path in sorted(folder.iterdir())})


def snapshot(train_state: TrainState, progress: RunProgress, card: ModelCard, training_images: bytes = b"") -> Snapshot:
    """Return a copy, in the host's memory, of the nets and the optimizer, with all else that a checkpoint holds.

    Args:
        train_state: the nets and the optimizer.
        progress: how far the run has come.
        card: of the model.
        training_images: the file that says which they are; where it is empty, there is no such file.
    """
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
    contents = {
        CARD: json_text(dict(card)).encode(),
        STATE: json_text(state).encode(),
        HISTORY: "".join(json_line(row) for row in progress.history).encode(),
        **({TRAINING_IMAGES: training_images} if training_images else {}),
    }
    copies = {file: {name: to_host(value) for name, value in values.items()} for file, values in tensors.items()}
    return Snapshot(copies, contents)


def load_checkpoint(folder: Path, train_state: TrainState) -> RunProgress:
    """Load the weights and the optimizer's state into ``train_state`` and return how far the run had come.

    Raises:
        UserError: the checkpoint is damaged, or of another net or optimizer.
    """
    problem = damage(folder)
    if problem:
        raise UserError(f"checkpoint {folder} is damaged: {problem}; delete it to resume from an older one.")
    try:
        state = _STATE.validate_python(parse_json((folder / STATE).read_bytes()))
        train_state.model.load_state_dict(load_file(folder / WEIGHTS))
        if train_state.average is not None:
            train_state.net.load_state_dict(load_file(folder / RAW))
        _restore_optimizer(train_state.optimizer, load_file(folder / OPTIMIZER), state.param_groups)
    except (OSError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {folder} does not fit this run ({first_line(error)}); delete it to resume from an older one."
        ) from None
    return RunProgress(state.step, state.samples, read_history(folder), _with_nan(state.sums), state.counted)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics that a checkpoint or model folder holds.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / HISTORY
    try:
        rows = _ROWS.validate_python([parse_json(line) for line in path.read_bytes().splitlines()])
    except (OSError, ValueError):
        raise UserError(f"{path} holds no metrics, a line of JSON each: it is damaged; train again.") from None
    return [_with_nan(row) for row in rows]


def _with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with NaN for null, which stands for every number that is not finite."""
    return {key: math.nan if value is None else value for key, value in row.items()}


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint, an empty string if it is intact."""
    try:
        manifest = dict(parse_json((folder / MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    unlisted = REQUIRED - manifest.keys()
    if unlisted:
        return f"{MANIFEST} does not list {min(unlisted)}"
    for name, digest in manifest.items():
        if name not in FILES or not is_sha256(digest):
            return f"{MANIFEST} lists {str(name)[:80]!r}, which no checkpoint has"
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != digest:
            return f"{name} has another sha256 than its manifest says"
    return ""


Number = int | float
Scalar = bool | Number | None


@dataclass(frozen=True)
class _State:
    """The content of state.json."""

    step: Count
    samples: str
    sums: dict[str, Number | None]
    counted: Count
    param_groups: list[dict[str, Scalar | list[Number]]]
    format: int = FORMAT


_STATE = TypeAdapter(_State)
_ROWS = TypeAdapter(list[dict[str, Number | None]])


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entries in state["state"].items()
        for name, value in entries.items()
    }
    # As without a CUDA graph, which reads the learning rate from a tensor.
    groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
    return tensors, [{**group, "capturable": False} if "capturable" in group else group for group in groups]


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

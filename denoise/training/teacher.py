"""The teacher of a distillation: a trained model, frozen, whose restored images are what a student learns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoise.config import Config
from denoise.data.samples import TAUGHT
from denoise.denoiser import Denoiser, load_denoiser
from denoise.errors import UserError
from denoise.images.tensors import pad, unpad
from denoise.methods import Method, build_method
from denoise.model_files import read_card
from denoise.noise import parse_noise
from denoise.precision import autocast, resolve_precision
from denoise.rng import Rng


@dataclass(frozen=True)
class Teacher:
    """A trained model that is asked for targets and never changed: no part of the net, nor of its checkpoints."""

    denoiser: Denoiser

    def __call__(self, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the targets (B, T C, H, W) of a noisy batch (B, C, H, W): those of its method, else what it restores.

        Args:
            noisy: of any size.
            level: of its noise, (B, 1, 1, 1); None: what the teacher was trained for, or an estimate.
            rng: the randomness of a teacher that has some.
        """
        denoiser, (height, width) = self.denoiser, noisy.shape[-2:]
        padded = pad(noisy, denoiser.multiple).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(denoiser.precision, noisy.device):
            targets = denoiser.method.student_targets(denoiser.net, padded)
        targets = targets or [denoiser(padded, level, rng)]
        return torch.cat([unpad(target, height, width).float() for target in targets], dim=1)


def told_of_teacher(method: Method, config: Config) -> Method:
    """Return the method with what it must know of ``train.teacher``, which is looked at and not loaded.

    Raises:
        UserError: a teacher is missing, is none, restores images of other channels, or is not used by the method.
    """
    reference = config.train.teacher
    if TAUGHT not in method.views():
        if reference is not None:
            raise UserError(
                f"train.teacher={reference} is without effect: method={config.method.name} learns from no teacher; "
                "leave it out, or give method=distil."
            )
        return method
    if reference is None:
        raise UserError("method=distil learns from a trained model and was given none; give train.teacher=FOLDER.")
    card = read_card(Path(reference))
    if card["channels"] != config.data.channels:
        raise UserError(
            f"train.teacher={reference} restores images of {card['channels']} channels, and data.colour="
            f"{config.data.colour} are {config.data.channels}; give a teacher of the same, or another data.colour."
        )
    if getattr(method, "told_level", None) is not None:
        return method
    teacher = build_method(card["method"]["name"], card["method"]["fields"], parse_noise(card["noise"]))
    return replace(method, told_level=teacher.needs_level())  # type: ignore[call-arg]


def load_teacher(config: Config, device: torch.device, provenance: Mapping[str, Any]) -> Teacher | None:
    """Return the teacher on its device, None without one.

    Args:
        config: ``train.teacher`` is the folder of a model.
        device: where to compute.
        provenance: of the run; its ``teacher`` is the digest of the model that the run was started with.

    Raises:
        UserError: the folder holds no model, or another one than the run was started with.
    """
    if config.train.teacher is None:
        return None
    folder = Path(config.train.teacher)
    denoiser = load_denoiser(folder, device)
    if provenance.get("teacher", denoiser.digest) != denoiser.digest:
        raise UserError(f"the teacher in {folder} is not the one this run was started with; put that one back.")
    denoiser.net.requires_grad_(False)
    return Teacher(replace(denoiser, precision=resolve_precision(config.train.precision, device)))

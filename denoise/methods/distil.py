"""Distillation: a plain network learns what a trained model restores (the second stage of AT-BSN, CVPR 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.losses import LossName, distance
from denoise.rng import Rng


@dataclass(frozen=True)
class Distil(Method):
    """Learn in one pass what a frozen teacher makes of the same noisy image in many, or with a costlier network.

        L = sum over t in T(y) of mean |f(y) - t|

    with the noisy image y and the targets T(y) of ``train.teacher``, a trained model: what it restores, with as many
    passes as it averages; of a model of ``atbsn`` what it restores with each of seven holes (Chen et al. 2024, with
    equal weights; the distance to their mean was 0.12 dB worse). ``loss_name`` is another distance.

    The student sees the pixel itself, and restores in one pass; the published ones are better than their teachers.
    """

    loss_name: LossName = "l1"
    told_level: bool | None = None  # whether the teacher is told the level of the noise; None: as it needs
    needs: ClassVar[tuple[View, ...]] = ("noisy", "level", "taught")
    net: ClassVar[str] = "unet_ssdn"

    def views(self) -> tuple[View, ...]:
        """Return noisy, its level where the teacher is told that, and what the teacher makes of it."""
        return self.needs if self.told_level else ("noisy", "taught")

    def assumes_independent_noise(self) -> bool:
        """Return False: what was assumed of the noise was assumed by the teacher."""
        return False

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the noisy image as input, and the targets, (B, T C, H, W). Nothing is drawn."""
        return {"input": sample["noisy"], "target": sample["taught"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the sum of the distances to the targets."""
        restored = net(batch["input"])
        targets = torch.split(batch["target"], restored.shape[1], dim=1)
        distances = [distance(self.loss_name, restored, target, progress=progress) for target in targets]
        return {"loss": torch.stack(distances).sum()}

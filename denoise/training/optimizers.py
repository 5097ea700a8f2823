"""Optimizers by name, and the running average of weights."""

from collections.abc import Iterable
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from denoise.config import Train

EPSILON = 1e-8


def make_optimizer(parameters: Iterable[nn.Parameter], spec: "Train") -> torch.optim.Optimizer:
    """Return the optimizer that ``train.optimizer`` names; weight decay is decoupled in adamw only."""
    if spec.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.decay, fused=spec.fused
        )
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.lr, betas=spec.betas, eps=EPSILON, weight_decay=spec.decay, fused=spec.fused)


class AveragedWeights:
    """An exponential moving average of a net's weights, as a net of its own; buffers are copied.

    torch.optim.swa_utils.AveragedModel computes the same numbers, but waits for the device in every step.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.module, self.decay = deepcopy(net), decay

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average a step towards the weights of ``net``."""
        torch._foreach_lerp_(list(self.module.parameters()), list(net.parameters()), 1 - self.decay)
        for average, buffer in zip(self.module.buffers(), net.buffers(), strict=True):
            average.copy_(buffer)


def make_average(net: nn.Module, spec: "Train") -> AveragedWeights | None:
    """Return the exponential moving average of a net's weights, None where ``train.ema`` is 0."""
    return AveragedWeights(net, spec.ema) if spec.ema else None

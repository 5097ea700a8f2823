"""Optimizers by name, and the running average of weights."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from denoise.config import Train

EPSILON = 1e-8


def make_optimizer(parameters: Iterable[nn.Parameter], spec: "Train") -> torch.optim.Optimizer:
    """Return the optimizer that ``train.optimizer`` names; weight decay is decoupled in adamw only."""
    if spec.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=spec.fused
        )
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.lr, betas=spec.betas, eps=EPSILON, weight_decay=spec.weight_decay, fused=spec.fused)


def make_average(net: nn.Module, spec: "Train") -> AveragedModel | None:
    """Return the exponential moving average of a net's weights, None where ``train.ema`` is 0; buffers are copied."""
    if spec.ema == 0:
        return None
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(spec.ema))  # type: ignore[no-untyped-call]
    average.n_averaged += 1  # the initial weights count: the first update already averages, as every later one does
    return average

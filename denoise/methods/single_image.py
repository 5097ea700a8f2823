"""Training on the one image that is to be restored, within a pass that restores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn


@contextmanager
def learning(device: torch.device) -> Iterator[None]:
    """Let gradients pass while the block runs, in fp32: images are restored in inference mode, perhaps in bf16."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


def trained_copy(
    net: nn.Module,
    loss: Callable[[nn.Module, int], Tensor],  # of the net and the number of the step
    *,
    steps: int,
    lr: float,
    schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
) -> nn.Module:
    """Return a copy of a net after steps of Adam; the net itself stays as it is."""
    net = deepcopy(net).train().requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    rates = schedule(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(loss(net, step))
        optimizer.step()
        rates.step()
    return net.eval()

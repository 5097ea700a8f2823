import pytest
import torch
from torch import nn

from denoise.config import Train
from denoise.training.optimizers import make_average, make_optimizer

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers_by_name(name, kind):
    spec = Train(optimizer=name, lr=0.1, betas=(0.8, 0.95), momentum=0.7, weight_decay=0.01)
    optimizer = make_optimizer(nn.Linear(2, 2).parameters(), spec)
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.01)
    assert group["momentum"] == 0.7 if name == "sgd" else tuple(group["betas"]) == (0.8, 0.95)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_weight_decay_and_momentum_are_torchs_own_unless_given(name, kind):
    ours, torchs = (
        make_optimizer(nn.Linear(2, 2).parameters(), Train(optimizer=name)),
        kind(nn.Linear(2, 2).parameters()),
    )
    for key in ("weight_decay", "momentum"):
        assert ours.defaults.get(key) == torchs.defaults.get(key)
    decayed = make_optimizer(nn.Linear(2, 2).parameters(), Train(optimizer=name, weight_decay=0))
    assert decayed.defaults["weight_decay"] == 0


def test_the_average_written_out():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    average = make_average(net, Train(ema=0.9))
    for value in (2.0, 4.0):
        nn.init.constant_(net.weight, value)
        average.update(net)
    assert average.module.weight.item() == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4)
    assert make_average(net, Train()) is None

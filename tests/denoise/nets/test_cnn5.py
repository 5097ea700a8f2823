import pytest
import torch

from denoise.nets import NetMaker


@pytest.mark.parametrize(("channels", "count"), [(3, 9 * 64 * (3 + 3 * 64 + 3) + 4 * 64 + 3), (1, 112_001)])
def test_there_are_five_convolutions_and_nothing_else_that_learns(channels, count):
    net = NetMaker("cnn5", channels, {})()
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in layers] == [(channels, 64), *[(64, 64)] * 3, (64, channels)]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for m in layers for p in m.parameters()) == count


def test_an_output_sees_eleven_by_eleven_pixels():
    torch.manual_seed(0)
    noisy = torch.rand(1, 1, 21, 21, requires_grad=True)
    NetMaker("cnn5", 1, {})()(noisy)[0, 0, 10, 10].backward()
    seen = noisy.grad[0, 0] != 0
    assert seen[5:16, 5:16].all()
    assert seen.sum() == 11 * 11

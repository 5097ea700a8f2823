import pytest
import torch

from denoise.nets import NetMaker


def make(channels=1, outputs=None, zero_last=False, **fields):
    torch.manual_seed(0)
    return NetMaker("dncnn", channels, fields)(outputs=outputs, zero_last=zero_last)


def kinds(net):
    return [type(m).__name__ for m in net.hidden]


@pytest.mark.parametrize("depth", [2, 17, 20])
def test_all_but_two_convolutions_are_normalised(depth):
    net = make(depth=depth)
    assert kinds(net) == ["Conv2d", "BatchNorm2d", "ReLU"] * (depth - 2)
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in layers] == [(1, 64), *[(64, 64)] * (depth - 2), (64, 1)]
    assert [m.bias is not None for m in layers] == [True, *[False] * (depth - 2), True]
    assert {m.kernel_size for m in layers} == {(3, 3)}


@pytest.mark.parametrize(("depth", "count"), [(17, 556_097), (20, 667_073)])
def test_dncnn_s_and_b_have_as_many_parameters_as_their_layers_sum_to(depth, count):
    total = (9 * 64 + 64) + (depth - 2) * (9 * 64 * 64 + 2 * 64) + (9 * 64 + 1)
    assert sum(p.numel() for p in make(depth=depth).parameters()) == total == count


def test_without_normalisation_every_convolution_has_a_bias():
    net = make(depth=5, batch_norm=False)
    assert kinds(net) == ["Conv2d", "ReLU"] * 3
    assert all(m.bias is not None for m in net.modules() if isinstance(m, torch.nn.Conv2d))


def test_an_image_comes_out_as_the_input_minus_the_residual():
    noisy = torch.rand(2, 3, 9, 7)
    assert torch.equal(make(3, zero_last=True, depth=3)(noisy), noisy)
    net = make(3, depth=3)
    torch.nn.init.constant_(net.last.bias, 0.25)
    torch.nn.init.zeros_(net.last.weight)
    assert torch.equal(net(noisy), noisy - 0.25)


def test_scales_of_the_normalisation_start_small_but_not_too_small():
    scales = torch.cat([m.weight.detach() for m in make().modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert scales.abs().min() == pytest.approx(0.025)
    assert (scales < 0).float().mean() == pytest.approx(0.5, abs=5 * 0.5 / len(scales) ** 0.5)
    assert scales.abs().max() < 5 * (2 / (9 * 64)) ** 0.5

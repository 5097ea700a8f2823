"""The diamond of TM-BSN: exactly zero inside, nothing missing beyond."""

import pytest
import torch

from denoise.nets import NetMaker
from denoise.nets.tmbsn import TriangularConv
from tests.denoise.nets.test_blind_spot import influence, places


def make(channels=1, blind_spot=True):
    torch.manual_seed(0)
    net = NetMaker("tmbsn", channels, {"features": 8})(outputs=2, blind_spot=blind_spot)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def assert_diamond(grads, at, shift):
    """Exactly zero inside; not zero anywhere beyond, but for corners that lie behind the border of the image."""
    for grad, (row, column) in zip(grads, at, strict=True):
        rows, columns = (abs(torch.arange(size) - place) for size, place in zip(grad.shape, (row, column), strict=True))
        away = rows[:, None] + columns
        assert not grad[away < shift].any(), f"the output at {(row, column)} sees into its hole"
        if min(rows[0], rows[-1], columns[0], columns[-1]) >= shift:
            assert grad[away >= shift].all(), f"the output at {(row, column)} misses a pixel beyond its hole"


@pytest.mark.parametrize("shift", range(7))
@pytest.mark.parametrize("size", [(17, 17), (13, 20), (20, 14)])
def test_the_hole_is_a_diamond(shift, size):
    at = [*places(*size), (size[0] // 2, size[1] // 2)]
    assert_diamond(influence(lambda noisy: make()(noisy, shift), 1, size, at), at, shift)


def test_the_hole_is_exact_under_autocast_with_channels_last():
    net, at = make(3).to(memory_format=torch.channels_last), [(0, 5), (8, 9)]

    def rounded(noisy):
        with torch.autocast("cpu", torch.bfloat16):
            return net(noisy.contiguous(memory_format=torch.channels_last), 5)

    grads = influence(rounded, 3, (17, 19), at)
    for grad, (row, column) in zip(grads, at, strict=True):
        away = abs(torch.arange(17) - row)[:, None] + abs(torch.arange(19) - column)
        assert not grad[away < 5].any()
        assert (grad[away == 5] != 0).float().mean() > 0.9  # bfloat16 rounds some to 0


def test_an_image_smaller_than_the_shift_is_restored_blindly():
    net, noisy = make(), torch.rand(1, 1, 3, 4)
    with torch.no_grad():
        assert torch.equal(net(noisy, 16), net(torch.rand(1, 1, 3, 4), 16))


def test_heads_of_one_body_are_the_passes_with_each_hole():
    net, noisy = make(), torch.rand(2, 1, 12, 15)
    with torch.no_grad():
        maps = net.body(noisy)
        assert all(torch.equal(net.head(maps, shift), net(noisy, shift)) for shift in range(4))


def test_the_form_without_a_blind_spot_sees_every_pixel_whatever_the_shift():
    at = places(12, 14)
    grads = influence(make(blind_spot=False), 1, (12, 14), at)
    assert all(grad[place] != 0 for grad, place in zip(grads, at, strict=True))


def test_there_are_57_masked_convolutions_whose_masked_weights_never_learn():
    net = make(3)
    layers = [layer for layer in net.modules() if isinstance(layer, TriangularConv)]
    assert len(layers) == 57
    net(torch.rand(1, 3, 16, 16), 2).square().mean().backward()
    for layer in layers:
        assert not layer.weight.grad.tril(-1).any()
        assert layer.weight.grad.flatten(0, 1).ne(0).any(0).sum() == 6
    assert sum(p.numel() for p in NetMaker("tmbsn", 3, {})().parameters()) == 1_350_339


def test_the_weights_start_so_that_values_neither_grow_nor_vanish():
    torch.manual_seed(0)
    net = NetMaker("tmbsn", 1, {})(blind_spot=True)
    with torch.no_grad():
        first = net.first(torch.rand(1, 1, 32, 32))
        assert 0.5 < net.groups(first).std() / first.std() < 5

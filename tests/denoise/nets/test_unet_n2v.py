import pytest
import torch

from denoise.nets import NetMaker
from denoise.nets.unet_n2v import _max_blur_pool

# csbdeep's unet_block of depth 2 with 96 filters, grey: inputs and outputs of its 3x3 convolutions, in order.
TABLE = [
    (1, 96), (96, 96), (96, 192), (192, 192),  # down
    (192, 384), (384, 192),  # middle
    (192 + 192, 192), (192, 96), (96 + 96, 96), (96, 96),  # up
]  # fmt: skip
TABLE_N2V2 = [*TABLE[:-2], (96, 96), (96, 96)]  # nothing handed across at the first level
ORDER = ("down.0", "down.1", "middle", "up.1", "up.0")


def convolutions(net):
    layers = []
    for part in ORDER:
        layers += [m for m in net.get_submodule(part).modules() if isinstance(m, torch.nn.Conv2d)]
    return layers


def make(name="unet_n2v", channels=1, outputs=None, **fields):
    torch.manual_seed(0)
    return NetMaker(name, channels, fields)(outputs=outputs)


@pytest.mark.parametrize(("name", "table"), [("unet_n2v", TABLE), ("unet_n2v2", TABLE_N2V2)])
def test_the_layers_are_those_of_the_package(name, table):
    net = make(name, features=96)
    assert [(m.in_channels, m.out_channels) for m in convolutions(net)] == table
    assert {m.kernel_size for m in convolutions(net)} == {(3, 3)}
    assert net.last.weight.shape == (1, 96, 1, 1)


@pytest.mark.parametrize(
    ("name", "table", "count"), [("unet_n2v", TABLE, 2_990_209), ("unet_n2v2", TABLE_N2V2, 2_907_265)]
)
def test_there_are_as_many_parameters_as_the_table_sums_to(name, table, count):
    total = sum(9 * inputs * outputs + 2 * outputs for inputs, outputs in table) + 96 + 1
    assert sum(p.numel() for p in make(name, features=96).parameters()) == total == count


@pytest.mark.parametrize(("depth", "multiple"), [(1, 2), (2, 4), (4, 16)])
def test_the_depth_decides_what_sides_must_be_multiples_of(depth, multiple):
    net = make(depth=depth, features=4)
    assert net.multiple == multiple
    assert net(torch.rand(2, 1, 2 * multiple, multiple * 3)).shape == (2, 1, 2 * multiple, multiple * 3)


def test_the_residual_form_starts_from_its_input_and_the_other_from_grey():
    noisy = torch.rand(2, 1, 8, 8)
    for residual, expected in ((True, noisy), (False, torch.full_like(noisy, 0.5))):
        net = make(features=4, residual=residual)
        torch.nn.init.zeros_(net.last.weight)
        torch.testing.assert_close(net(noisy), expected)


def test_noise2void_2_is_noise2void_with_three_changes():
    other = make("unet_n2v", features=8, residual=False, blurpool=True, top_skip=False).eval()
    net, noisy = make("unet_n2v2", features=8).eval(), torch.rand(1, 1, 16, 16)
    assert torch.equal(net(noisy), other(noisy))
    for change in ({"residual": True}, {"blurpool": False}):
        fields = {"residual": False, "blurpool": True, "top_skip": False} | change
        other = make("unet_n2v", features=8, **fields).eval()
        assert not torch.allclose(net(noisy), other(noisy))


def test_without_normalisation_every_convolution_has_a_bias():
    net = make(features=4, batch_norm=False)
    assert all(m.bias is not None for m in convolutions(net))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())


def test_the_blur_pool_is_a_dense_maximum_and_a_binomial_blur():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 8)
    dense = x[..., :-1, :-1].maximum(x[..., 1:, :-1]).maximum(x[..., :-1, 1:]).maximum(x[..., 1:, 1:])
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = torch.nn.functional.conv2d(dense, torch.outer(kernel, kernel).expand(3, 1, 3, 3), groups=3)
    torch.testing.assert_close(_max_blur_pool(x)[..., 1:-1, 1:-1], blurred[..., 1::2, 1::2])
    assert _max_blur_pool(x).shape == (2, 3, 6, 4)


def test_the_blur_pool_keeps_a_flat_image_and_is_centred():
    assert torch.equal(_max_blur_pool(torch.full((1, 1, 8, 8), 0.25)), torch.full((1, 1, 4, 4), 0.25))
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(_max_blur_pool(x.flip(2, 3)), _max_blur_pool(x).flip(2, 3))

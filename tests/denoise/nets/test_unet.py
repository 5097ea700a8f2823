import pytest
import torch
from torch.nn import functional as F

from denoise.nets import NetMaker, multiple_of
from denoise.nets.layers import conv

# Lehtinen et al. 2018, table 2: inputs and outputs of every convolution, with 3 channels in and out.
TABLE = {
    "enc_conv0": (3, 48), "enc_conv1": (48, 48), "enc_conv2": (48, 48), "enc_conv3": (48, 48), "enc_conv4": (48, 48),
    "enc_conv5": (48, 48), "enc_conv6": (48, 48), "dec_conv5a": (96, 96), "dec_conv5b": (96, 96),
    "dec_conv4a": (144, 96), "dec_conv4b": (96, 96), "dec_conv3a": (144, 96), "dec_conv3b": (96, 96),
    "dec_conv2a": (144, 96), "dec_conv2b": (96, 96), "dec_conv1a": (99, 64), "dec_conv1b": (64, 32),
    "dec_conv1c": (32, 3),
}  # fmt: skip


def test_the_unet_has_the_layers_of_the_paper():
    weights = {
        name.removesuffix(".weight"): p.shape
        for name, p in NetMaker("unet_n2n", 3, {})().named_parameters()
        if p.ndim == 4
    }
    assert {name: (shape[1], shape[0]) for name, shape in weights.items()} == TABLE
    assert {tuple(shape[2:]) for shape in weights.values()} == {(3, 3)}


@pytest.mark.parametrize(("channels", "count"), [(3, 991_203), (1, 988_609)])
def test_the_unet_has_as_many_parameters_as_the_table_sums_to(channels, count):
    assert sum(p.numel() for p in NetMaker("unet_n2n", channels, {})().parameters()) == count


def test_sides_of_the_unet_are_multiples_of_32():
    assert multiple_of(NetMaker("unet_n2n", 3, {})()) == 32


def test_the_weights_of_a_seed_are_those_of_the_layers_in_their_order():
    torch.manual_seed(0)
    layers = [conv(*shape, gain=1.0 if name == "dec_conv1c" else 2**0.5) for name, shape in TABLE.items()]
    torch.manual_seed(0)
    net = NetMaker("unet_n2n", 3, {})()
    for layer, (name, _) in zip(layers, TABLE.items(), strict=True):
        assert torch.equal(layer.weight, net.get_submodule(name).weight)


@pytest.mark.parametrize(("activation", "slope"), [("leaky_relu", 0.1), ("relu", 0.0)])
def test_the_activation_and_the_initialisation_can_be_chosen(activation, slope):
    torch.manual_seed(0)
    net, maps = NetMaker("unet_n2n", 1, {"activation": activation, "init": "kaiming_uniform"})(), []
    net.dec_conv1b.register_forward_hook(lambda _module, _inputs, output: maps.append(output.clone()))
    net.dec_conv1c.register_forward_pre_hook(lambda _module, inputs: maps.append(inputs[0]))
    net(torch.rand(1, 1, 32, 32))
    assert maps[0].min() < 0
    assert torch.equal(maps[1], F.leaky_relu(maps[0], slope))
    for name, gain in (("dec_conv3a", (2 / (1 + slope**2)) ** 0.5), ("dec_conv1c", 1.0)):
        weight = net.get_submodule(name).weight.detach()
        bound = gain * (3 / weight[0].numel()) ** 0.5
        assert weight.abs().max() == pytest.approx(bound, rel=1e-3 if name == "dec_conv3a" else 0.02)
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_weights_are_he_normal_and_the_last_layer_has_gain_one():
    torch.manual_seed(0)
    net = NetMaker("unet_n2n", 3, {})()
    weights = {name: p.detach() for name, p in net.named_parameters()}
    assert weights["dec_conv3a.weight"].std() == pytest.approx((2 / (144 * 9)) ** 0.5, rel=0.02)
    assert weights["dec_conv1c.weight"].std() == pytest.approx((1 / (32 * 9)) ** 0.5, rel=0.1)
    assert all(not p.any() for name, p in weights.items() if name.endswith("bias"))

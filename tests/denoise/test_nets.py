import pytest
import torch

from denoise.errors import UserError
from denoise.nets import build_net, multiple_of

# Lehtinen et al. 2018, table 2: outputs of every convolution, with 3 channels in and out.
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
        for name, p in build_net("unet_n2n", 3, {}).named_parameters()
        if p.ndim == 4
    }
    assert {name: (shape[1], shape[0]) for name, shape in weights.items()} == TABLE
    assert {tuple(shape[2:]) for shape in weights.values()} == {(3, 3)}


@pytest.mark.parametrize(("channels", "count"), [(3, 991_203), (1, 988_609)])
def test_the_unet_has_as_many_parameters_as_the_table_sums_to(channels, count):
    assert sum(p.numel() for p in build_net("unet_n2n", channels, {}).parameters()) == count


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_the_unet_keeps_the_shape(channels, size):
    net = build_net("unet_n2n", channels, {})
    batch = torch.rand(2, channels, *size)
    assert net(batch).shape == batch.shape
    assert multiple_of(net) == 32


def test_weights_are_he_normal_and_the_last_layer_has_gain_one():
    torch.manual_seed(0)
    net = build_net("unet_n2n", 3, {})
    weights = {name: p.detach() for name, p in net.named_parameters()}
    assert weights["dec_conv3a.weight"].std() == pytest.approx((2 / (144 * 9)) ** 0.5, rel=0.02)
    assert weights["dec_conv1c.weight"].std() == pytest.approx((1 / (32 * 9)) ** 0.5, rel=0.1)
    assert all(not p.any() for name, p in weights.items() if name.endswith("bias"))


def test_every_skip_is_used():
    net = build_net("unet_n2n", 1, {})
    net(torch.rand(1, 1, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(("name", "fields"), [("unet", {}), ("unet_n2n", {"depth": 3})])
def test_unknown_nets_and_fields_are_told(name, fields):
    with pytest.raises(UserError, match="unet_n2n"):
        build_net(name, 3, fields)

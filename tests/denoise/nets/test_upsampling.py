import pytest
import torch
from torch import nn
from torch.nn import functional as F

from denoise.nets import NETS, NetMaker, unet, unet_ssdn, upsampling
from denoise.nets.layers import conv
from denoise.nets.upsampling import coarse_conv, concat_upsampled, conv_above, upsample, upsampled_conv
from denoise.precision import autocast

CPU = torch.device("cpu")
LAYOUTS = pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


def plain_concat(coarse, skip):
    return torch.cat([F.interpolate(coarse, scale_factor=2, mode="nearest"), skip.to(coarse.dtype)], dim=1)


def plain_conv(layer, coarse, skip, above=1):
    maps = plain_concat(coarse, skip)
    return layer(maps) if above == 1 else conv_above(layer, maps)


def learn(net, noisy, precision="fp32"):
    """Return the output and all gradients of a pass."""
    net.zero_grad()
    with autocast(precision, CPU):
        output = net(noisy)
    (output.float() ** 2).mean().backward()
    return [output.detach(), *(p.grad for p in net.parameters())]


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_upsampling_is_that_of_torch_to_the_last_bit(dtype, layout):
    torch.manual_seed(0)
    coarse = torch.randn(2, 8, 5, 7).to(dtype).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(2, 11, 10, 14).to(dtype).contiguous(memory_format=layout)[:, :8]
    ours, theirs = upsample(coarse), F.interpolate(coarse, scale_factor=2, mode="nearest")
    assert torch.equal(ours, theirs)
    (mine,), (torchs,) = (torch.autograd.grad(fine, coarse, gradient) for fine in (ours, theirs))
    assert torch.equal(mine, torchs)
    assert mine.stride() == torchs.stride()


def test_upsampling_has_a_second_derivative():
    coarse = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: upsample(x) ** 2, coarse)


@CHANNELS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [(unet, "unet_n2n", {}), (unet, "unet_n2n", {"activation": "relu"}), (unet_ssdn, "unet_ssdn", {})],
    ids=["unet_n2n", "relu", "unet_ssdn"],
)
def test_training_computes_the_bits_of_the_plain_form(monkeypatch, module, name, fields, precision, channels):
    torch.manual_seed(0)
    net = NetMaker(name, channels, fields)().to(memory_format=torch.channels_last)
    noisy = torch.rand(1, channels, 64, 64).contiguous(memory_format=torch.channels_last)
    ours = learn(net, noisy, precision)
    monkeypatch.setattr(module, "concat_upsampled", plain_concat)
    monkeypatch.setattr(module, "upsampled_conv", plain_conv)
    plain = learn(net, noisy, precision)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@CHANNELS
@pytest.mark.parametrize("name", NETS)
def test_every_convolution_of_a_net_reads_channels_last(name, channels):
    net, wrong = NetMaker(name, channels, {})().to(memory_format=torch.channels_last), []

    def look(layer, inputs):
        if not inputs[0].is_contiguous(memory_format=torch.channels_last):
            wrong.append((layer, inputs[0].shape, inputs[0].stride()))

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_pre_hook(look)
    noisy = torch.rand(1, channels, 32, 32).contiguous(memory_format=torch.channels_last)
    net(noisy)
    with torch.inference_mode():
        net.eval()(noisy)
    assert not wrong


@CHANNELS
@pytest.mark.parametrize("above", [1, 2])
def test_a_convolution_of_coarse_maps_is_that_of_the_upsampled_maps_up_to_the_borders(above, channels):
    torch.manual_seed(0)
    layer = conv(6 + channels, 5).double()
    nn.init.normal_(layer.bias)
    coarse, skip = torch.randn(2, 6, 3, 4).double(), torch.randn(2, channels, 6, 8).double()
    with torch.no_grad():
        torch.testing.assert_close(
            coarse_conv(layer, coarse, skip, above), plain_conv(layer, coarse, skip, above), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize(
    ("side", "training", "grad", "expected"),
    [(48, False, False, 1), (48, True, False, 0), (48, False, True, 0), (32, False, False, 0)],
)
def test_only_restoring_of_large_maps_goes_by_coarse_maps(monkeypatch, side, training, grad, expected):
    calls = []
    monkeypatch.setattr(upsampling, "coarse_conv", lambda *args: calls.append(args))
    layer = conv(5, 2).train(training)
    with torch.set_grad_enabled(grad):
        upsampled_conv(layer, torch.rand(1, 4, side, side), torch.rand(1, 1, 2 * side, 2 * side))
    assert len(calls) == expected


@pytest.mark.parametrize(
    ("name", "fields", "form"),
    [
        ("unet_n2n", {}, {}),
        ("unet_n2n", {"activation": "relu"}, {}),
        ("unet_ssdn", {}, {}),
        ("unet_ssdn", {}, {"blind_spot": True}),
    ],
)
def test_restoring_differs_from_training_by_rounding(name, fields, form):
    torch.manual_seed(0)
    net, noisy = NetMaker(name, 3, fields)(**form).eval(), torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        restored = net(noisy)
    expected = net(noisy).detach()
    assert not torch.equal(restored, expected)
    torch.testing.assert_close(restored, expected, rtol=1e-5, atol=1e-5)


def test_upsampling_goes_into_one_compiled_graph():
    compiled = torch.compile(concat_upsampled, backend="aot_eager", fullgraph=True)
    coarse, skip = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 1, 8, 8)
    (ours,) = torch.autograd.grad(compiled(coarse, skip).square().sum(), coarse)
    (plain,) = torch.autograd.grad(plain_concat(coarse, skip).square().sum(), coarse)
    assert torch.equal(ours, plain)


def test_upsampling_has_a_gradient_on_the_meta_device():
    coarse = torch.empty(1, 2, 4, 4, device="meta", requires_grad=True)
    upsample(coarse).sum().backward()
    assert coarse.grad.shape == coarse.shape

"""The contract that every network keeps."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load, save

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.tensors import pad, to_tensor, unpad
from denoise.nets import NETS, NetMaker, multiple_of

ALL = pytest.mark.parametrize("name", NETS)
CHANNELS = pytest.mark.parametrize("channels", [1, 3])
MULTIPLE = {"unet_n2n": 32, "unet_ssdn": 32, "unet_n2v": 4, "unet_n2v2": 4, "drunet": 8}
BLIND = [name for name, cls in NETS.items() if "blind_spot" in inspect.signature(cls).parameters]


@dataclass(frozen=True)
class Small:
    """Makes a network with few feature maps, where their number can be chosen."""

    name: str
    channels: int = 3

    def __call__(self, **form):
        torch.manual_seed(0)
        fields = {"features": 8} if "features" in inspect.signature(NETS[self.name]).parameters else {}
        return NetMaker(self.name, self.channels, fields)(**form)

    def images(self, count=2, seed=0):
        torch.manual_seed(seed)
        side = max(multiple_of(self()), 8)
        return torch.rand(count, self.channels, side, 2 * side)


@ALL
@CHANNELS
def test_the_output_has_the_shape_of_the_image(name, channels):
    make = Small(name, channels)
    batch = make.images()
    assert make()(batch).shape == batch.shape


@ALL
@CHANNELS
@pytest.mark.parametrize("outputs", [2, 9])
def test_as_many_channels_come_out_as_were_asked_for(name, channels, outputs):
    make = Small(name, channels)
    batch = make.images()
    assert make(outputs=outputs)(batch).shape == (2, outputs, *batch.shape[2:])


@ALL
def test_multiple_is_what_sides_must_be_multiples_of(name):
    assert multiple_of(Small(name)()) == MULTIPLE.get(name, 1)


@ALL
def test_odd_sizes_work_after_padding(name):
    make = Small(name)
    net, image = make(), torch.rand(1, 3, 7, 37)
    restored = unpad(net(pad(image, multiple_of(net))), 7, 37)
    assert restored.shape == image.shape
    assert restored.isfinite().all()


@ALL
@CHANNELS
@pytest.mark.parametrize("outputs", [None, 5])
def test_the_gradient_reaches_every_parameter(name, channels, outputs):
    make = Small(name, channels)
    net = make(outputs=outputs)
    (net(make.images()) - make.images(seed=1).mean()).square().mean().backward()
    untouched = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@ALL
def test_images_of_a_batch_do_not_touch_each_other_once_trained(name):
    make = Small(name)
    net, batch = make().eval(), make.images(3)
    with torch.no_grad():
        together, alone = net(batch), torch.cat([net(image[None]) for image in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@ALL
def test_a_net_in_eval_mode_is_a_function_of_its_input(name):
    make = Small(name)
    net, batch = make().eval(), make.images()
    before = batch.clone()
    with torch.no_grad():
        assert torch.equal(net(batch), net(batch))
    assert torch.equal(batch, before)


@ALL
def test_zero_last_silences_the_last_layer(name):
    make = Small(name)
    net = make(zero_last=True, outputs=2)
    assert not net.last.weight.any()
    assert make(outputs=2).last.weight.any()
    answer = net.eval()(make.images())
    assert torch.equal(answer, answer[:1, :, :1, :1].expand_as(answer))  # a bias at most


@ALL
def test_weights_are_stored_once_and_come_back(name):
    make = Small(name)
    net, batch = make(), make.images()
    state = net.state_dict()
    assert len({p.data_ptr() for p in net.parameters()}) == len(list(net.parameters()))
    torch.manual_seed(1)
    other = type(net)(3, 3, **({"features": 8} if "features" in inspect.signature(type(net)).parameters else {}))
    other.load_state_dict(load(save(state)))
    with torch.no_grad():
        assert torch.equal(net.eval()(batch), other.eval()(batch))


@ALL
def test_the_memory_format_changes_nothing_but_rounding(name):
    make = Small(name)
    net, batch = make().eval(), make.images()
    with torch.no_grad():
        plain = net(batch)
        changed = net.to(memory_format=torch.channels_last)(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(changed, plain, rtol=1e-3, atol=1e-4)


@ALL
def test_autocast_costs_no_more_than_rounding(name):
    make = Small(name)
    net, batch = make(), make.images()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(batch)
    rounded.float().square().mean().backward()
    exact = net(batch)
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


@ALL
def test_a_net_learns_a_photograph(name, photographs):
    pixels = to_tensor(read_image(photographs / "coffee.png").pixels)[None, :, 100:132, 100:132]
    torch.manual_seed(0)
    noisy = pixels + 25 / 255 * torch.randn(pixels.shape)
    net = Small(name)()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        loss = (net(noisy) - pixels).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.6 * losses[0]


@ALL
def test_a_form_with_a_blind_spot_is_refused_where_there_is_none(name):
    if name in BLIND:
        assert Small(name)(blind_spot=True).blind_spot
        return
    with pytest.raises(UserError, match=f"net={name} has no form with a blind spot.*unet_ssdn"):
        Small(name)(blind_spot=True)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("unet", {}, "net=unet is not known.*unet_n2n"),
        ("unet_ssdn", {"depth": 3}, "net.depth is not a field of unet_ssdn; it has no fields"),
        ("unet_n2n", {"activation": "gelu"}, "invalid value 'gelu' for net.activation: .*'leaky_relu' or 'relu'"),
        ("dncnn", {"dept": 3}, r"net.dept is not a field of dncnn \(did you mean depth"),
        ("unet_ssdn", {"blind_spot": True}, "net.blind_spot is not a field of unet_ssdn"),
        ("dncnn", {"depth": 1}, "invalid value 1 for net.depth: input should be greater than or equal to 2"),
        ("cnn5", {"features": 0}, "invalid value 0 for net.features"),
        ("drunet", {"blocks": "many"}, "invalid value 'many' for net.blocks"),
    ],
)
def test_a_wrong_field_is_reported(name, fields, message):
    with pytest.raises(UserError, match=message):
        NetMaker(name, 3, fields)()

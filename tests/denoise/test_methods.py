"""The contract that every method keeps."""

import pytest
import torch
from torch import nn

from denoise.errors import UserError
from denoise.methods import METHODS, build_method, observe
from denoise.noise import parse_noise
from denoise.rng import batch_rng

ALL = pytest.mark.parametrize("name", METHODS)
SUPERVISED = {"n2c"}
CLEAN = torch.linspace(0, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


class TinyNet(nn.Module):
    """Two convolutions around the input, enough to learn to smooth."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, channels, 5, padding=2)
        )

    def forward(self, noisy):
        return self.layers(noisy)


class Spy(dict):
    """A sample that remembers what was asked of it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = set()

    def __getitem__(self, view):
        self.asked.add(view)
        return super().__getitem__(view)


def views_of(method, clean=CLEAN, step=0, noise="gauss25"):
    rng = batch_rng(0, step, torch.arange(len(clean)))
    return observe(clean, parse_noise(noise), method.needs, rng)


def batch_of(method, clean=CLEAN, step=0):
    rng = batch_rng(0, step, torch.arange(len(clean)))
    return method.make_batch(views_of(method, clean, step), rng.stream("method"))


@ALL
def test_only_a_supervised_method_is_ever_handed_clean_pictures(name):
    method = build_method(name, {})
    views = views_of(method)
    assert ("clean" in method.needs) == (name in SUPERVISED)
    assert set(views) == set(method.needs)
    assert name in SUPERVISED or not any(torch.equal(view, CLEAN) for view in views.values())


@ALL
def test_a_method_asks_for_nothing_it_does_not_declare(name):
    method = build_method(name, {})
    spy = Spy(views_of(method))
    method.make_batch(spy, batch_rng(0, 0, torch.arange(2)))
    assert spy.asked <= set(method.needs)


@ALL
def test_the_same_keys_make_the_same_batch(name):
    method = build_method(name, {})
    first, second, other = batch_of(method), batch_of(method), batch_of(method, step=1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@ALL
@pytest.mark.parametrize("loss_name", ["l1", "l2"])
def test_the_loss_is_finite_and_its_gradient_reaches_every_parameter(name, loss_name):
    method, net = build_method(name, {"loss_name": loss_name}), TinyNet()
    terms = method.loss(net, batch_of(method), progress=0.5)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@ALL
def test_a_few_steps_beat_the_noisy_picture(name, photographs):
    from denoise.images import read_picture, to_tensor

    pixels = to_tensor(read_picture(photographs / "coffee.png").pixels)[None, :, 100:164, 100:164]
    clean = pixels.expand(8, -1, -1, -1)
    torch.manual_seed(0)
    method, net = build_method(name, {}), TinyNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(150):
        method.loss(net, batch_of(method, clean, step), step / 150)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    noisy, sigma = parse_noise("gauss25").corrupt(pixels, batch_rng(1, 0, torch.arange(1)))
    restored = method.predict(net, noisy, sigma)
    assert (restored - pixels).square().mean() < 0.5 * (noisy - pixels).square().mean()


@ALL
@pytest.mark.parametrize("shape", [(1, 1, 7, 9), (2, 3, 5, 32)])
def test_predict_keeps_the_shape(name, shape):
    restored = build_method(name, {}).predict(TinyNet(shape[1]), torch.rand(shape), None)
    assert restored.shape == shape


def test_noise2noise_sees_two_independent_observations():
    clean = torch.full((4, 3, 64, 64), 0.5)
    views = views_of(build_method("n2n", {}), clean)
    first, second = (views[name] - clean for name in ("noisy", "noisy2"))
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 5 / first.numel() ** 0.5


def test_noise2noise_draws_sigma_twice_in_a_range():
    clean = torch.full((4, 3, 64, 64), 0.5)
    views = views_of(build_method("n2n", {}), clean, noise="gauss5_50")
    deviations = [(views[name] - clean).flatten(1).std(dim=1) for name in ("noisy", "noisy2")]
    assert not torch.allclose(*deviations, rtol=0.05)


def test_the_expected_noise2noise_loss_is_the_supervised_loss_plus_the_noise_variance():
    clean = torch.full((16, 3, 64, 64), 0.5)
    net = nn.Identity()
    losses = {
        name: build_method(name, {}).loss(net, batch_of(build_method(name, {}), clean), 0)["loss"] for name in METHODS
    }
    variance = (25 / 255) ** 2
    assert losses["n2n"] == pytest.approx(losses["n2c"].item() + variance, rel=0.02)


def test_unknown_methods_and_fields_are_told():
    with pytest.raises(UserError, match="did you mean n2n"):
        build_method("n2nn", {})
    with pytest.raises(UserError, match="method.loss_nam is not a key"):
        build_method("n2n", {"loss_nam": "l1"})

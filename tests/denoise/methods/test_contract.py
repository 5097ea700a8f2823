"""The contract that every method keeps."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from denoise.errors import UserError
from denoise.methods import METHODS, build_method, observe
from denoise.noise import parse_noise
from denoise.rng import batch_rng

pytestmark = pytest.mark.smoke

ALL = pytest.mark.parametrize("name", METHODS)
TRAINED = pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.trained])
SUPERVISED = {"n2c"}
GAUSS, POISSON = parse_noise("gauss25"), parse_noise("poisson30")
CLEAN = torch.linspace(0, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
# Further forms of methods that the contract has to hold for as well.
FORMS = [
    ("n2n", {"bidirectional": True}),
    ("n2n", {"swap": True}),
    ("n2v", {"mask_ratio": 0.05, "replacement": "median"}),
    ("n2v", {"mask_ratio": 0.05, "structure": "cross"}),
    ("ssdn", {"mu_only": True}),
    ("ssdn", {"sigma": "constant"}),
    ("ssdn", {"sigma": "variable"}),
    ("ssdn", {"covariance": "diagonal"}),
    ("distil", {"told_level": True}),
    ("atbsn", {"hole": 3, "hole_at_test": 0}),
]
EVERY_FORM = pytest.mark.parametrize(
    ("name", "fields"), [*((name, {}) for name, method in METHODS.items() if method.trained), *FORMS], ids=str
)


class TinyNet(nn.Module):
    """Two convolutions around the input, enough to learn to smooth; with a blind spot on request.

    Its side is 2 shift - 1, as of the networks that have one: the taps of the first convolution lie so far apart.
    """

    def __init__(self, channels: int, outputs: int, blind_spot: bool = False) -> None:
        super().__init__()
        self.blind_spot = blind_spot
        self.first = nn.Conv2d(channels, 24, 5, padding=2)
        self.last = nn.Conv2d(24, outputs, 1 if blind_spot else 5, padding=0 if blind_spot else 2)

    def forward(self, noisy, shift=1):
        weight, apart = self.first.weight, max(shift, 1)
        if self.blind_spot and shift:
            weight = weight * (torch.arange(25).view(5, 5) != 12)
        maps = F.conv2d(noisy, weight, self.first.bias, padding=2 * apart, dilation=apart)
        return self.last(F.leaky_relu(maps, 0.1))


class TinyMaker:
    """Makes tiny nets."""

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels

    def __call__(self, *, outputs=None, blind_spot=False, zero_last=False):
        net = TinyNet(self.channels, outputs or self.channels, blind_spot)
        if zero_last:
            nn.init.zeros_(net.last.weight)
        return net


class Spy(dict):
    """A sample that records which views are read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.views_read = set()

    def __getitem__(self, view):
        self.views_read.add(view)
        return super().__getitem__(view)


def keys_of(batch, step=0):
    return batch_rng(0, step, torch.arange(len(batch)))


def noise_of(method):
    """Gaussian noise where a method is defined for it, else Poisson noise."""
    return GAUSS if "gauss" in (method.families or ("gauss",)) else POISSON


def method_of(name, fields=None):
    return build_method(name, fields or {}, noise_of(METHODS[name]))


def teach(noisy):
    """Two targets of a teacher that smooths."""
    return torch.cat([F.avg_pool2d(noisy, side, 1, side // 2, count_include_pad=False) for side in (3, 5)], dim=1)


def views_of(method, clean=CLEAN, step=0, noise=None, rng=None):
    views = observe(clean, noise or noise_of(method), method.views(), rng or keys_of(clean, step))
    return {**views, "taught": teach(views["noisy"])} if "taught" in method.views() else views


def batch_of(method, clean=CLEAN, step=0):
    return method.make_batch(views_of(method, clean, step), keys_of(clean, step).stream("method"))


@ALL
def test_clipped_gaussian_noise_is_treated_as_gaussian_noise(name):
    if "gauss" in (METHODS[name].families or ("gauss",)):
        assert build_method(name, {}, parse_noise("clippedgauss25")) == build_method(name, {}, GAUSS)


@TRAINED
def test_only_a_supervised_method_is_ever_handed_clean_images(name):
    method = method_of(name)
    views = views_of(method)
    assert ("clean" in method.views()) == (name in SUPERVISED)
    assert set(views) == set(method.views())
    assert name in SUPERVISED or not any(torch.equal(view, CLEAN) for view in views.values())


@EVERY_FORM
def test_a_method_asks_for_nothing_it_does_not_declare(name, fields):
    method = method_of(name, fields)
    spy = Spy(views_of(method))
    method.make_batch(spy, keys_of(CLEAN))
    assert spy.views_read <= set(method.views())
    assert set(method.views()) <= set(method.needs)


@EVERY_FORM
def test_the_same_keys_make_the_same_batch(name, fields):
    method = method_of(name, fields)
    first, second, other = batch_of(method), batch_of(method), batch_of(method, step=1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@EVERY_FORM
def test_the_loss_is_finite_and_its_gradient_reaches_every_parameter(name, fields):
    torch.manual_seed(0)
    method = method_of(name, fields)
    net = method.make_net(TinyMaker())
    for progress in (0.0, 0.5, 1.0):  # some start with zero weights: nothing reaches what is below those at first
        terms = method.loss(net, batch_of(method), progress)
        assert all(term.isfinite() and term.ndim == 0 for term in terms.values())
        net.zero_grad()
        terms["loss"].backward()
        with torch.no_grad():
            for parameter in net.parameters():
                assert parameter.grad is not None
                parameter.sub_(1e-3 * parameter.grad.sign())
    assert all(p.grad.any() for p in net.parameters())


@EVERY_FORM
def test_a_rank_with_part_of_the_batch_computes_part_of_the_loss(name, fields):
    """The loss of a global batch is the mean of its samples' losses, so it does not matter how ranks share it."""
    torch.manual_seed(0)
    method = method_of(name, fields)
    net = method.make_net(TinyMaker()).eval()
    batch = batch_of(method)
    whole = method.loss(net, batch, 0.5)["loss"].item()
    parts = []
    for index in range(2):
        rng = batch_rng(0, 0, torch.tensor([index]))
        alone = method.make_batch(views_of(method, CLEAN[index : index + 1], rng=rng), rng.stream("method"))
        parts.append(method.loss(net, alone, 0.5)["loss"].item())
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-4, abs=1e-6)


@EVERY_FORM
def test_a_few_steps_beat_the_noisy_image(name, fields, photographs):
    from denoise.images.io import read_image
    from denoise.images.tensors import to_tensor

    pixels = to_tensor(read_image(photographs / "coffee.png").pixels)[None, :, 100:132, 100:132]
    clean = pixels.expand(4, -1, -1, -1)
    torch.manual_seed(0)
    if name == "n2v":
        fields = {"mask_ratio": 0.05, **fields}  # eight pixels a crop, as in the paper, take thousands of steps
    if name == "b2u":
        fields = {"cell": 2, **fields}  # 4 copies of each image a step, not 16
    method = method_of(name, fields)
    net = method.make_net(TinyMaker())
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(200):
        method.loss(net, batch_of(method, clean, step), step / 200)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    seen = noise_of(method).corrupt(pixels, batch_rng(1, 0, torch.arange(1)))
    with torch.no_grad():
        restored = method.predict(net.eval(), seen.noisy, seen.level, keys_of(pixels))
    share = (restored - pixels).square().mean() / (seen.noisy - pixels).square().mean()
    assert share < (0.95 if "sigma" in fields else 0.7)  # a sigma that is learnt starts small: restored is near noisy


@EVERY_FORM
@pytest.mark.parametrize("shape", [(1, 1, 7, 9), (2, 3, 5, 32)])
def test_predict_keeps_the_shape(name, fields, shape):
    method = method_of(name, fields)
    noisy = torch.rand(shape)
    net = method.make_net(TinyMaker(shape[1])).eval()
    with torch.inference_mode():
        restored = method.predict(net, noisy, torch.full((shape[0], 1, 1, 1), 0.1), keys_of(noisy))
    assert restored.shape == shape


def test_noise2noise_sees_two_independent_observations():
    clean = torch.full((4, 3, 64, 64), 0.5)
    views = views_of(build_method("n2n", {}, GAUSS), clean)
    first, second = (views[name] - clean for name in ("noisy", "noisy2"))
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 5 / first.numel() ** 0.5


def test_noise2noise_draws_sigma_twice_in_a_range():
    clean = torch.full((4, 3, 64, 64), 0.5)
    views = views_of(build_method("n2n", {}, GAUSS), clean, noise=parse_noise("gauss5_50"))
    deviations = [(views[name] - clean).flatten(1).std(dim=1) for name in ("noisy", "noisy2")]
    assert not torch.allclose(*deviations, rtol=0.05)


def test_the_expected_noise2noise_loss_is_the_supervised_loss_plus_the_noise_variance():
    clean = torch.full((16, 3, 64, 64), 0.5)
    losses = {}
    for name in ("n2c", "n2n"):
        method = build_method(name, {}, GAUSS)
        losses[name] = method.loss(nn.Identity(), batch_of(method, clean), 0)["loss"].item()
    assert losses["n2n"] == pytest.approx(losses["n2c"] + (25 / 255) ** 2, rel=0.02)


class Knows(nn.Module):
    """Knows the clean image."""

    def forward(self, noisy):
        return CLEAN


def test_pixels_that_the_target_lost_do_not_count():
    """Multiplicative Bernoulli noise: what is left of the target is clean, so a net that knows it makes no error."""
    noise = parse_noise("bernoulli0.5")
    method = build_method("n2n", {}, noise)
    batch = method.make_batch(views_of(method, noise=noise), keys_of(CLEAN).stream("method"))
    assert 0.3 < batch["target_mask"].mean() < 0.7
    assert not torch.equal(batch["target_mask"], batch["input_mask"])
    assert method.loss(Knows(), batch, 0)["loss"] == 0
    assert (batch["target"] - CLEAN).square().mean() > 0.1


def test_lost_pixels_that_count_ask_for_a_darker_image():
    """The mean of lost and kept pixels is (1 - p) times the clean image, which an L2 loss asks for."""
    noise = parse_noise("bernoulli0.5")
    method = build_method("n2n", {"masked": False}, noise)
    batch = method.make_batch(views_of(method, noise=noise), keys_of(CLEAN).stream("method"))

    def loss_of(share):
        return method.loss(nn.Identity(), {**batch, "input": share * CLEAN}, 0)["loss"].item()

    assert loss_of(0.5) < min(loss_of(0.4), loss_of(0.6), loss_of(1.0))


def test_the_bidirectional_loss_is_the_mean_of_both_directions():
    one_way, both = (build_method("n2n", {"bidirectional": turned}, GAUSS) for turned in (False, True))
    net, batch = TinyMaker()(), batch_of(one_way)
    turned = {"input": batch["target"], "target": batch["input"], "target_mask": batch["input_mask"]}
    forth, back = (one_way.loss(net, pair, 0)["loss"].item() for pair in (batch, turned))
    assert both.loss(net, batch, 0)["loss"].item() == pytest.approx(0.5 * (forth + back))


def test_swapping_exchanges_input_and_target_of_half_the_samples():
    plain, swap = (build_method("n2n", {"swap": swap}, GAUSS) for swap in (False, True))
    clean = torch.rand(64, 1, 8, 8)
    before, after = batch_of(plain, clean), batch_of(swap, clean)
    unchanged = [torch.equal(a, b) for a, b in zip(before["input"], after["input"], strict=True)]
    turned = [torch.equal(a, b) for a, b in zip(before["target"], after["input"], strict=True)]
    assert all(k != t for k, t in zip(unchanged, turned, strict=True))
    assert 12 <= sum(turned) <= 52  # five standard deviations of 64 coins


def test_unknown_methods_and_fields_are_reported():
    with pytest.raises(UserError, match="did you mean n2n"):
        build_method("n2nn", {}, GAUSS)
    with pytest.raises(UserError, match="method.loss_nam is not a key"):
        build_method("n2n", {"loss_nam": "l1"}, GAUSS)

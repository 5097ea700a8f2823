import pytest
import torch
from torch import nn
from torch.nn import functional as F

from denoise.errors import UserError
from denoise.methods import METHODS, build_method, ssdn_posterior
from denoise.methods.ssdn import SSDN, BlindSpotNet
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from denoise.rng import batch_rng

RNG = batch_rng(0, 0, torch.arange(1))
START = 0.0191499  # log(1 + e^-4) + 0.001


class Blind(nn.Module):
    """A convolution whose centre is masked, then 1x1 ones: a true blind spot, if a small one."""

    multiple = 4

    def __init__(self, channels, outputs, side=5):
        super().__init__()
        self.first = nn.Conv2d(channels, 16, side, padding=side // 2, padding_mode="reflect")
        self.last = nn.Conv2d(16, outputs, 1)
        mask = torch.ones(side, side)
        mask[side // 2, side // 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, noisy):
        padded = F.pad(noisy, [self.mask.shape[0] // 2] * 4, mode="reflect")
        return self.last(F.leaky_relu(F.conv2d(padded, self.first.weight * self.mask, self.first.bias), 0.1))


class Make:
    """Builds ``Blind`` nets, and plain ones of two convolutions, and records the requests."""

    def __init__(self, channels=3):
        self.channels = channels
        self.requests = []

    def __call__(self, *, outputs=None, blind_spot=False, zero_last=False):
        self.requests.append((outputs, blind_spot, zero_last))
        if blind_spot:
            return Blind(self.channels, outputs or self.channels)
        net = nn.Sequential(nn.Conv2d(self.channels, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(8, outputs, 1))
        for value in (net[2].weight, net[2].bias) if zero_last else ():
            nn.init.zeros_(value)
        return net


class Constant(nn.Module):
    """Puts out the same numbers at every pixel, as parameters."""

    def __init__(self, *numbers):
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor(numbers))

    def forward(self, noisy):
        return self.numbers.view(1, -1, 1, 1).expand(len(noisy), -1, *noisy.shape[2:])


class Neighbours(nn.Module):
    """The mean of the 24 neighbours, and a prior that is learnt and the same everywhere."""

    def __init__(self, channels, roots):
        super().__init__()
        self.roots = nn.Parameter(0.01 * torch.randn(roots))

    def forward(self, noisy):
        around = F.avg_pool2d(F.pad(noisy, [2] * 4, mode="reflect"), 5, 1)
        roots = self.roots.view(1, -1, 1, 1).expand(len(noisy), -1, *noisy.shape[2:])
        return torch.cat([(25 * around - noisy) / 24, roots], dim=1)


def loss_of(method, *numbers, y=0.7, level=None, channels=1, progress=0.0):
    """The loss of an image of one value, with a network that always puts out these numbers."""
    net = BlindSpotNet(Constant(*numbers), "known" if method.mu_only else method.sigma)
    batch = {"input": torch.full((2, channels, 3, 4), y)}
    if level is not None:
        batch["level"] = torch.full((2, 1, 1, 1), level)
    return net, method.loss(net, batch, progress)["loss"]


def noisy_batch(sigma=0.1, size=8, channels=3, step=0):
    rng = batch_rng(0, step, torch.arange(size))
    clean = rng.stream("value").uniform(channels, 1, 1).expand(-1, -1, 16, 16)
    return clean + sigma * rng.stream("noise").normal(channels, 16, 16)


@pytest.mark.parametrize(
    ("fields", "views", "needs_level"),
    [
        ({}, ("noisy", "level"), True),
        ({"sigma": "constant"}, ("noisy",), False),
        ({"sigma": "variable"}, ("noisy",), False),
        ({"mu_only": True}, ("noisy",), False),
    ],
)
def test_the_level_is_seen_only_where_it_is_used(fields, views, needs_level):
    method = SSDN(**fields)
    assert method.views() == views
    assert method.needs_level() is needs_level
    sample = {"noisy": noisy_batch(), "level": torch.full((8, 1, 1, 1), 0.1)}
    assert "target" not in method.make_batch({view: sample[view] for view in views}, RNG)


@pytest.mark.parametrize("name", ["gauss25", "gauss5_50"])
def test_the_family_is_filled_in(name):
    method = build_method("ssdn", {}, parse_noise(name))
    assert (type(method), method.family) == (METHODS["ssdn"], "gauss")


@pytest.mark.parametrize(
    ("fields", "requests"),
    [
        ({}, [(9, True, False)]),
        ({"covariance": "diagonal"}, [(6, True, False)]),
        ({"sigma": "constant"}, [(9, True, False)]),
        ({"sigma": "variable"}, [(9, True, False), (1, False, True)]),
        ({"sigma": "variable", "zero_start": False}, [(9, True, False), (1, False, False)]),
        ({"mu_only": True, "sigma": "variable"}, [(None, True, False)]),
    ],
)
def test_the_requested_networks(fields, requests):
    make = Make()
    net = SSDN(**fields).make_net(make)
    assert make.requests == requests
    assert net.multiple == 4


def test_the_grey_loss_worked_out_by_hand():
    # y = 0.7, prior N(0.5, 0.03), sigma 0.1: 0.04 / 0.04 + log 0.04, not halved
    _, loss = loss_of(SSDN(family="gauss"), 0.5, 0.03**0.5, level=0.1)
    assert loss.item() == pytest.approx(-2.2188758, rel=1e-5)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_the_colour_loss_is_halved(covariance):
    a = 0.03**0.5
    roots = [a, 0, 0, a, 0, a] if covariance == "full" else [a, a, a]
    method = SSDN(family="gauss", covariance=covariance)
    _, loss = loss_of(method, 0.5, 0.5, 0.5, *roots, level=0.1, channels=3)
    assert loss.item() == pytest.approx(3 * -2.2188758 / 2, rel=1e-5)


def test_real_noise_is_treated_as_gaussian():
    losses = [loss_of(SSDN(family=family), 0.5, 0.1, level=0.1)[1] for family in ("gauss", "none")]
    assert losses[0] == losses[1]


def test_a_known_sigma_is_at_least_a_thousandth():
    losses = [loss_of(SSDN(family="gauss"), 0.7, 0.0, level=level)[1].item() for level in (0.0, 1e-3)]
    assert losses == pytest.approx([-13.815511] * 2)  # log 1e-6


def test_levels_below_a_thousandth_differ_in_images_that_do_not_fill_the_range():
    """As of 12-bit counts in a 16-bit file: 15, 20 and 30 of 65535."""
    torch.manual_seed(0)  # a net in sixty has a pixel whose deviation is the same for two levels, as it hardly deviates
    method = SSDN(family="gauss")
    make = NetMaker("unet_ssdn", 1, {})
    net = method.make_net(make).eval()
    rng = batch_rng(0, 0, torch.tensor([0]))
    for brightest in (400, 4095):
        image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * brightest / 65535
        levels = [torch.full((1, 1, 1, 1), counts / 65535) for counts in (15, 20, 30)]
        with torch.no_grad():
            restored = [method.predict(net, image, level, rng) for level in levels]
            deviations = [method.deviation(net, image, level) for level in levels]
            losses = [method.loss(net, {"input": image, "level": level}, 0.0)["loss"] for level in levels]
        for low, high in ((0, 1), (1, 2)):
            assert not torch.equal(restored[low], restored[high])
            assert (deviations[low] < deviations[high]).all()
            assert losses[low] != losses[high]


def test_a_black_image_without_noise_has_a_finite_result():
    method = SSDN(family="gauss")
    net = method.make_net(NetMaker("unet_ssdn", 1, {})).eval()
    black, zero = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 1, 1)
    with torch.no_grad():
        assert method.predict(net, black, zero, batch_rng(0, 0, torch.tensor([0]))).isfinite().all()
        assert method.loss(net, {"input": black, "level": zero}, 0.0)["loss"].isfinite()


def test_a_learnt_sigma_starts_at_0_019_and_is_favoured_by_a_tenth_of_itself():
    _, loss = loss_of(SSDN(family="gauss", sigma="constant"), 0.7, 0.2)
    variance = 0.04 + START**2
    assert loss.item() == pytest.approx(torch.tensor(variance).log().item() - 0.1 * START, rel=1e-5)


@pytest.mark.parametrize("sigma", [10.0, 40.0, 1e5])
def test_no_sigma_above_one_is_favoured(sigma):
    # log sigma^2 - 0.1 sigma falls above 20 (30 in colour): such an estimate would grow for ever
    method = SSDN(family="gauss", sigma="constant")
    net, _ = loss_of(method, 0.7, 0.2)
    with torch.no_grad():
        net.theta.fill_(4 + sigma - 0.001)  # softplus(x) is x there
    loss = method.loss(net, {"input": torch.full((2, 1, 3, 4), 0.7)}, 0.0)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(0.04 + sigma**2).log().item() - 0.1, rel=1e-4)
    assert net.theta.grad.item() > 0


def test_poisson_noise_has_the_variance_of_the_predicted_signal():
    # mu = 0.3, peak 30: variance 0.01; with a prior of 0.03 and y = 0.5 the loss is 1 + log 0.04
    _, loss = loss_of(SSDN(family="poisson"), 0.3, 0.03**0.5, y=0.5, level=30.0)
    assert loss.item() == pytest.approx(-2.2188758, rel=1e-5)
    _, dark = loss_of(SSDN(family="poisson"), -1.0, 0.0, y=-1.0, level=30.0)
    assert dark.item() == pytest.approx(-10.308953, rel=1e-5)  # log(0.001 / 30)


def test_the_gradient_of_poisson_noise_flows_through_the_mean():
    net, loss = loss_of(SSDN(family="poisson"), 0.3, 0.2, y=0.45, level=30.0)
    loss.backward()
    r, s = 0.15, 0.04 + 0.3 / 30
    expected = -2 * r / s + (1 / s - r * r / s**2) / 30  # the second part is the variance's
    assert net.blind.numbers.grad[0].item() == pytest.approx(expected, rel=1e-4)


def test_a_learnt_parameter_of_poisson_noise_is_one_over_the_peak():
    _, loss = loss_of(SSDN(family="poisson", sigma="constant"), 0.3, 0.2, y=0.3)
    variance = 0.3 * START
    expected = torch.tensor(0.04 + variance).log().item() - 0.1 * variance**0.5
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_impulse_loss_worked_out_by_hand():
    # half of the pixels lost, mu = 0.5, no doubt: m = 0.5 and Sy = 0.5 / 12; 0.04 / Sy + log Sy
    for sigma, level in (("known", 0.5), ("constant", None)):
        method = SSDN(family="impulse", sigma=sigma)
        net, loss = loss_of(method, 0.5, 0.0, y=0.7, level=level)
        if sigma == "constant":  # softplus(theta - 4) + 0.001 = 0.5: no regularisation either
            with torch.no_grad():
                net.theta.fill_(4 + torch.tensor(0.499).expm1().log())
            loss = method.loss(net, {"input": torch.full((2, 1, 3, 4), 0.7)}, 0.0)["loss"]
        assert loss.item() == pytest.approx(0.96 - 3.1780538, rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_impulse_noise_allows_that_no_pixel_or_every_pixel_is_lost(share):
    method = SSDN(family="impulse")
    net, loss = loss_of(method, 0.5, 0.0, y=0.7, level=share)
    noisy, level = torch.full((1, 1, 2, 2), 0.7), torch.full((1, 1, 1, 1), share)
    assert loss.isfinite()
    assert method.predict(net, noisy, level, RNG).isfinite().all()
    assert method.deviation(net, noisy, level).isfinite().all()


def test_mu_only_is_compared_with_the_noisy_image():
    _, loss = loss_of(SSDN(family="gauss", mu_only=True), 0.5, y=0.7)
    assert loss.item() == pytest.approx(0.04, rel=1e-5)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.2**2), (0.5, 0.2), (1.0, 0.2**0.5)])
def test_mu_only_for_impulse_noise_is_annealed_to_a_half(progress, expected):
    _, loss = loss_of(SSDN(family="impulse", mu_only=True), 0.5, y=0.7, progress=progress)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["gauss", "poisson", "impulse"])
def test_the_gradient_reaches_the_learnt_noise(family):
    torch.manual_seed(0)
    noisy = noisy_batch()
    for sigma in ("constant", "variable"):
        method = SSDN(family=family, sigma=sigma)
        net = method.make_net(Make())
        method.loss(net, {"input": noisy}, 0.0)["loss"].backward()
        learnt = net.theta if sigma == "constant" else net.sigma_net[2].weight
        assert learnt.grad.abs().min() > 0
        assert all(p.grad.any() for p in net.blind.parameters())


def test_the_network_of_sigma_starts_constant_and_then_distinguishes_images():
    torch.manual_seed(0)
    net = SSDN(sigma="variable").make_net(Make())
    _, theta = net(noisy_batch())
    assert theta.shape == (8, 1, 1, 1)
    assert theta.flatten().tolist() == pytest.approx([START] * 8, rel=1e-5)
    nn.init.normal_(net.sigma_net[2].weight)
    assert net(noisy_batch())[1].unique().numel() == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_a_learnt_sigma_finds_that_of_the_noise(channels):
    """Flat images: the mean of 24 neighbours errs by sigma^2 / 24, which sigma takes over, for the prior lags behind.

    The likelihood alone knows but the sum of the two variances. How they share it is left to the regularisation, whose
    pull is weak: hence the steps of two sizes.
    """
    torch.manual_seed(0)
    method = SSDN(family="gauss", sigma="constant")
    net = BlindSpotNet(Neighbours(channels, channels * (channels + 1) // 2), "constant")
    groups = [{"params": [net.theta], "lr": 0.1}, {"params": net.blind.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (120 - step) / 60))
    for step in range(120):
        terms = method.loss(net, {"input": noisy_batch(0.1, channels=channels, step=step)}, step / 120)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        falling.step()
    _, prior = ssdn_posterior.moments(net(noisy_batch(channels=channels))[0], channels, "full")
    sigma = terms["theta"].item()
    assert sigma == pytest.approx(0.1, rel=0.1)
    prior_variance = prior.diagonal(dim1=1, dim2=2).mean().item()
    assert sigma**2 + prior_variance == pytest.approx(0.01 * (1 + 1 / 24), rel=0.1)


@pytest.mark.parametrize("family", ["gauss", "poisson", "impulse"])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_posterior_narrows_the_prior_and_uses_the_pixel_itself(family, covariance, channels):
    torch.manual_seed(0)
    method = SSDN(family=family, covariance=covariance)
    net = method.make_net(Make(channels)).eval()
    noisy = noisy_batch(channels=channels).requires_grad_()
    level = torch.full((8, 1, 1, 1), 30.0 if family == "poisson" else 0.1)
    restored = method.predict(net, noisy, level, RNG)
    deviation = method.deviation(net, noisy, level)
    assert restored.shape == deviation.shape == noisy.shape
    assert restored.dtype == deviation.dtype == torch.float32
    assert (deviation >= 0).all()
    restored[0, 0, 8, 8].backward(retain_graph=True)
    assert noisy.grad[0, 0, 8, 8] > 0
    noisy.grad = None
    net(noisy)[0][0, 0, 8, 8].backward()
    assert noisy.grad[0, :, 8, 8].abs().sum() == 0  # the stand-in is blind, so that came from Bayes' rule


def test_the_posterior_of_a_pixel_worked_out_by_hand():
    net = BlindSpotNet(Constant(0.5, 0.03**0.5), "known")
    noisy, level = torch.full((1, 1, 2, 2), 0.7), torch.full((1, 1, 1, 1), 0.1)
    assert SSDN().predict(net, noisy, level, RNG).flatten().tolist() == pytest.approx([0.65] * 4)
    assert SSDN().deviation(net, noisy, level).flatten().tolist() == pytest.approx([0.0866025] * 4)


def test_mu_only_restores_the_mean():
    noisy = torch.full((1, 1, 2, 2), 0.7)
    restored = SSDN(mu_only=True).predict(BlindSpotNet(Constant(0.5), "known"), noisy, None, RNG)
    assert restored.flatten().tolist() == [0.5] * 4


def test_a_learnt_sigma_needs_no_level_to_restore():
    torch.manual_seed(0)
    method = SSDN(family="gauss", sigma="variable")
    net = method.make_net(Make()).eval()
    given = SSDN(family="gauss").predict(BlindSpotNet(net.blind, "known"), noisy_batch(), torch.tensor(START), RNG)
    assert torch.allclose(method.predict(net, noisy_batch(), None, RNG), given, atol=1e-5)


@pytest.mark.parametrize("sigma", ["known", "constant", "variable"])
def test_the_network_of_the_paper_learns_and_restores(sigma):
    torch.manual_seed(0)
    method = build_method("ssdn", {"sigma": sigma}, parse_noise("gauss25"))
    net = method.make_net(NetMaker(method.net, 3, {}))
    level = torch.full((2, 1, 1, 1), 25 / 255)
    noisy = F.pad(noisy_batch(25 / 255, size=2), [8] * 4, mode="reflect")  # sides of 32
    terms = method.loss(net, {"input": noisy, "level": level}, 0.0)
    terms["loss"].backward()
    assert net.multiple == 32
    assert terms["loss"].isfinite()
    assert ("theta" in terms) == (sigma != "known")
    assert sigma == "known" or terms["theta"].item() == pytest.approx(START, rel=1e-5)
    # behind a last layer of zeros nothing is reached before that layer has made its first step
    trained = net.blind if sigma == "variable" else net
    last = net.sigma_net.last.parameters() if sigma == "variable" else ()
    assert all(p.grad is not None and p.grad.any() for p in (*trained.parameters(), *last))
    with torch.inference_mode():
        assert method.predict(net.eval(), noisy, level if sigma == "known" else None, RNG).isfinite().all()


def test_what_cannot_be_computed_is_reported():
    net = SSDN().make_net(Make())
    with pytest.raises(UserError, match="ssdn needs the noise level"):
        SSDN().predict(net, noisy_batch(), None, RNG)
    mean = SSDN(mu_only=True)
    with pytest.raises(UserError, match="no standard deviation"):
        mean.deviation(mean.make_net(Make()), noisy_batch(), None)


def test_the_loss_is_the_same_under_autocast():
    torch.manual_seed(0)
    method = SSDN(family="gauss")
    batch = {"input": noisy_batch(), "level": torch.full((8, 1, 1, 1), 0.1)}
    net = BlindSpotNet(Constant(*torch.randn(9).tolist()), "known")
    loss = method.loss(net, batch, 0.0)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert method.loss(net, batch, 0.0)["loss"] == loss

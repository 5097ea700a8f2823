import pytest
import torch
from torch import nn

from denoise.methods.sure import SURE
from denoise.rng import batch_rng

SIGMA = 0.1


def keys(step, size=8):
    return batch_rng(0, step, torch.arange(size))


def noisy_sample(clean, step=0, sigma=SIGMA):
    level = torch.full((len(clean), 1, 1, 1), sigma)
    return {"noisy": clean + level * keys(step, len(clean)).stream("noise").normal(*clean.shape[1:]), "level": level}


def small_net(channels=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, channels, 3, padding=1))


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, noisy):
        return self.factor * noisy


def test_the_estimate_of_a_linear_net_worked_out():
    """f(y) = w y: mean (w - 1)^2 y^2 - sigma^2 + 2 sigma^2 w mean b^2, a sample at a time."""
    sample = noisy_sample(torch.rand(8, 3, 16, 16))
    sample["level"] = torch.linspace(0.01, 0.2, 8).view(8, 1, 1, 1)
    batch = SURE().make_batch(sample, keys(0))
    actual = SURE().loss(Scale(0.8), batch, 0.0)
    y, b, variance = sample["noisy"], batch["probe"], sample["level"].flatten().square()
    expected = 0.04 * y.square().mean((1, 2, 3)) - variance + 2 * variance * 0.8 * b.square().mean((1, 2, 3))
    assert actual["loss"].item() == pytest.approx(expected.mean().item(), rel=1e-3)  # rounding over epsilon: 1e-4
    assert actual["divergence"].item() == pytest.approx(0.8 * b.square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_expected_estimate_is_the_supervised_loss(channels):
    clean = torch.rand(8, channels, 24, 24, generator=torch.Generator().manual_seed(0))
    net, differences = small_net(channels), []
    with torch.no_grad():
        for step in range(200):
            sample = noisy_sample(clean, step)
            supervised = (net(sample["noisy"]) - clean).square().mean()
            differences.append(SURE().loss(net, SURE().make_batch(sample, keys(step)), 0.0)["loss"] - supervised)
    actual = torch.stack(differences)
    assert abs(actual.mean()) < 5 * actual.std() / len(actual) ** 0.5
    assert 5 * actual.std() / len(actual) ** 0.5 < 0.1 * SIGMA**2  # else the bound would let a missing term pass


def test_the_probe_is_standard_normal_and_fresh():
    sample = noisy_sample(torch.rand(8, 3, 32, 32))
    first, again, other = (SURE().make_batch(sample, keys(step))["probe"] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape == sample["noisy"].shape
    assert first.std().item() == pytest.approx(1, rel=5 / (2 * first.numel()) ** 0.5)
    noise = sample["noisy"] - sample["noisy"].mean((2, 3), keepdim=True)
    for a, b in [(first, other), (first[:, 0], first[:, 1]), (first, noise)]:
        limit = 5 / a.numel() ** 0.5
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < limit


def test_it_learns_the_wiener_factor_without_clean_images():
    """Gaussian pixels of deviation 0.2 under noise of 0.1: the best factor is 0.04 / 0.05."""
    net = Scale(0.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for step in range(150):
        clean = 0.2 * keys(step).stream("clean").normal(3, 32, 32)
        optimizer.zero_grad()
        SURE().loss(net, SURE().make_batch(noisy_sample(clean, step), keys(step)), 0.0)["loss"].backward()
        optimizer.step()
    assert net.factor.item() == pytest.approx(0.8, abs=0.02)


def test_the_difference_is_the_derivative_along_the_probe_even_under_autocast():
    """Against torch's exact derivative; rounding over epsilon is 1e-4 a pixel, bfloat16's would be 1."""
    net, batch = small_net(), SURE().make_batch(noisy_sample(torch.rand(8, 1, 16, 16)), keys(0))
    _, along = torch.autograd.functional.jvp(net, batch["input"], batch["probe"])
    exact = (along * batch["probe"]).mean().item()
    plain = SURE().loss(net, batch, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = SURE().loss(net, batch, 0.0)
    for actual in (plain, cast):
        assert actual["divergence"].item() == pytest.approx(exact, abs=1e-4)
    assert cast["loss"] == plain["loss"]


def test_restoring_needs_no_level():
    noisy = torch.rand(2, 1, 8, 8)
    assert not SURE().needs_level()
    assert torch.equal(SURE().predict(Scale(0.5), noisy, None, keys(0, 2)), 0.5 * noisy)

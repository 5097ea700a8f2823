import numpy as np
import pytest
import torch
from torch import nn

from denoise.errors import UserError
from denoise.methods import build_method, observe
from denoise.methods.recorrupted2recorrupted import Recorrupted2Recorrupted
from denoise.noise import parse_noise
from denoise.rng import batch_rng

SIGMA = 25 / 255


def keys(step, size=8):
    return batch_rng(0, step, torch.arange(size))


def sample_of(clean, step=0, noise="gauss25"):
    views = observe(clean, parse_noise(noise), Recorrupted2Recorrupted.needs, keys(step, len(clean)))
    return {**views}


def poisson_sample(clean, peak, seed=0):
    counts = np.random.default_rng(seed).poisson(peak * clean.numpy())
    return {"noisy": torch.tensor(counts / peak).float(), "level": torch.full((len(clean), 1, 1, 1), peak)}


def smoother(channels=1):
    """A small fixed network that is not linear."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, channels, 3, padding=1))


def assert_zero_mean(values):
    values = values.double().flatten()
    assert abs(values.mean()) < 5 * values.std() / values.numel() ** 0.5


@pytest.mark.parametrize("alpha", [0.5, 1, 2])
@pytest.mark.parametrize("noise", ["gauss25", "gauss5_50"])
def test_the_errors_of_input_and_target_are_not_correlated(alpha, noise):
    clean = torch.full((8, 3, 64, 64), 0.4)
    batch = Recorrupted2Recorrupted(alpha, family="gauss").make_batch(sample_of(clean, noise=noise), keys(0))
    assert_zero_mean((batch["input"] - clean) * (batch["target"] - clean))


@pytest.mark.parametrize("peak", [10.0, 60.0])
def test_the_errors_are_not_correlated_for_poisson_noise(peak):
    clean = torch.linspace(0.8, 1, 8).view(8, 1, 1, 1).expand(8, 3, 64, 64)  # hardly ever 0 photons
    method = Recorrupted2Recorrupted(family="poisson")
    batch = method.make_batch(poisson_sample(clean, peak), keys(0))
    assert_zero_mean((batch["input"] - clean) * (batch["target"] - clean))


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_the_pair_is_recorrupted_by_the_same_noise(alpha):
    """Only with one z do the two hold the noisy image together: input + alpha^2 target = (1 + alpha^2) y."""
    sample = sample_of(torch.rand(8, 3, 32, 32))
    batch = Recorrupted2Recorrupted(alpha, family="gauss").make_batch(sample, keys(0))
    together = (batch["input"] + alpha**2 * batch["target"]) / (1 + alpha**2)
    assert torch.allclose(together, sample["noisy"], atol=1e-5)
    added = batch["input"] - sample["noisy"]
    bound = 5 / (2 * added.numel()) ** 0.5  # standard error of a standard deviation, relative
    assert added.std().item() == pytest.approx(alpha * SIGMA, rel=bound)


def test_the_noise_is_drawn_for_every_pixel_and_channel_and_every_step():
    sample = sample_of(torch.full((8, 3, 32, 32), 0.5))
    method = Recorrupted2Recorrupted(family="gauss")
    first, again, next_step = (method.make_batch(sample, keys(step))["input"] for step in (0, 0, 1))
    added, other = first - sample["noisy"], next_step - sample["noisy"]
    assert torch.equal(first, again)
    limit = 5 / (added.numel() / 3) ** 0.5
    pairs = [(added[:, 0], added[:, 1]), (added[:, 1], added[:, 2]), (added[..., 1:], added[..., :-1]), (added, other)]
    for a, b in pairs:
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < limit


def test_an_input_is_never_its_own_target():
    for family, sample in {
        "gauss": sample_of(torch.zeros(8, 3, 32, 32)),
        "poisson": poisson_sample(torch.zeros(8, 3, 32, 32), 30.0),  # black: not one photon was seen
    }.items():
        before = sample["noisy"].clone()
        batch = Recorrupted2Recorrupted(family=family).make_batch(sample, keys(0))
        assert (batch["input"] != batch["target"]).float().mean() > 0.999
        assert not torch.equal(batch["input"], before)
        assert torch.equal(sample["noisy"], before)


def test_the_sigma_of_poisson_noise_is_that_of_the_noisy_value():
    noisy = torch.tensor([0.0, 0.1, 0.4]).view(1, 1, 1, 3)
    sample = {"noisy": noisy, "level": torch.full((1, 1, 1, 1), 10.0)}
    added = Recorrupted2Recorrupted(1.0, family="poisson").make_batch(sample, keys(0, 1))["input"] - noisy
    unit = Recorrupted2Recorrupted(1.0, family="gauss").make_batch(
        {"noisy": torch.zeros(1, 1, 1, 3), "level": torch.ones(1, 1, 1, 1)}, keys(0, 1)
    )["input"]
    assert (added / unit).flatten().tolist() == pytest.approx([0.1, 0.1, 0.2], rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_expected_loss_is_the_supervised_loss_plus_a_constant(alpha):
    """E |f(a) - b|^2 = E |f(a) - clean|^2 + E |b - clean|^2, the last being sigma^2 + sigma^2 / alpha^2."""
    clean = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    net, method = smoother(), Recorrupted2Recorrupted(alpha, family="gauss")
    differences = []
    with torch.no_grad():
        for step in range(100):
            batch = method.make_batch(sample_of(clean, step), keys(step))
            supervised = (net(batch["input"]) - clean).square().mean()
            differences.append(method.loss(net, batch, 0.0)["loss"] - supervised)
    actual = torch.stack(differences)
    assert abs(actual.mean() - SIGMA**2 * (1 + 1 / alpha**2)) < 5 * actual.std() / len(actual) ** 0.5


def test_the_mean_of_fifty_passes_is_closer_to_the_truth_than_one_pass():
    method = Recorrupted2Recorrupted(family="gauss")
    assert method.test_time_passes() == 50
    clean = torch.linspace(0, 1, 32).expand(8, 1, 32, 32)
    sample, net = sample_of(clean), smoother()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(60):
        optimizer.zero_grad()
        method.loss(net, method.make_batch(sample_of(clean, step), keys(step)), 0.0)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        passes = [
            method.predict(net, sample["noisy"], sample["level"], keys(0).stream(f"pass{number}"))
            for number in range(method.test_time_passes())
        ]
    errors = [(restored - clean).square().mean((1, 2, 3)) for restored in (passes[0], torch.stack(passes).mean(0))]
    assert (errors[1] < errors[0]).all()


def test_an_image_is_recorrupted_at_test():
    noisy, level = torch.rand(2, 3, 64, 64), torch.full((2, 1, 1, 1), SIGMA)
    restored = Recorrupted2Recorrupted(family="gauss").predict(nn.Identity(), noisy, level, keys(0, 2))
    added = restored - noisy
    assert added.std().item() == pytest.approx(0.5 * SIGMA, rel=5 / (2 * added.numel()) ** 0.5)


def test_the_level_is_needed():
    method = build_method("r2r", {"alpha": 0.7}, parse_noise("gauss25"))
    assert (method.alpha, method.family) == (0.7, "gauss")
    assert method.needs_level()
    with pytest.raises(UserError, match="r2r needs the noise level"):
        method.predict(nn.Identity(), torch.rand(1, 1, 4, 4), None, keys(0, 1))


@pytest.mark.parametrize("fields", [{"alpha": 0}, {"passes": 0}])
def test_fields_that_make_no_sense_are_refused(fields):
    with pytest.raises(UserError, match="invalid value"):
        build_method("r2r", fields, parse_noise("gauss25"))

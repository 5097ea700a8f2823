import numpy as np
import pytest
import torch
from scipy import stats

from denoise.noise import parse_noise
from denoise.noise.poisson import poisson
from denoise.rng import batch_rng


def rng(samples):
    return batch_rng(0, 0, torch.arange(samples))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.999, 1, 5, 5.5, 40, 63.97, 64, 200, 999.5])
def test_counts_are_poisson_distributed(rate):
    size = 400_000
    counts = poisson(torch.full((1, size), rate, dtype=torch.float64), rate, rng(1)).long().numpy().ravel()
    # Counts of fewer than 20 expected hits are joined: the tails, each as one cell.
    inside = [count for count in range(2000) if stats.poisson.pmf(count, rate) * size >= 20]
    first, last = inside[0], inside[-1]
    edges = np.arange(first, last + 1)
    expected = stats.poisson.pmf(edges, rate)
    expected[0], expected[-1] = stats.poisson.cdf(first, rate), stats.poisson.sf(last - 1, rate)
    actual = np.bincount(counts.clip(first, last) - first, minlength=len(edges))
    assert stats.chisquare(actual, expected * size).pvalue > 1e-6


@pytest.mark.parametrize(("peak", "shade"), [(0.5, 1), (1, 0.5), (30, 0.01), (30, 0.5), (30, 1), (100, 0.7), (1000, 1)])
def test_mean_is_the_image_and_variance_is_the_image_through_the_peak(peak, shade):
    clean = torch.full((2, 3, 200, 200), shade)
    observed = parse_noise(f"poisson{peak:g}").corrupt(clean, rng(2))
    error, size = (observed.noisy - clean).double(), clean.numel()
    variance = shade / peak
    fourth = variance**2 * (3 + 1 / (shade * peak))  # of a Poisson count, divided by peak^4
    assert torch.all(observed.level == peak)
    assert abs(error.mean()) < 5 * (variance / size) ** 0.5
    assert error.square().mean() == pytest.approx(variance, abs=5 * ((fourth - variance**2) / size) ** 0.5)


def test_every_value_has_the_rate_of_its_own_place_channel_and_sample():
    clean = torch.linspace(0, 1, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    observed = [parse_noise("poisson3_90").corrupt(clean, batch_rng(0, step, torch.arange(2))) for step in range(600)]
    peak = torch.stack([sample.level for sample in observed])
    standard = (
        (torch.stack([sample.noisy for sample in observed]) - clean) * (peak / clean.clamp_min(1e-9)).sqrt()
    ).mean(0)
    assert standard.abs().max() < 5 / 600**0.5
    assert len({tuple(sample.level.flatten().tolist()) for sample in observed}) == 600


def test_neighbours_and_channels_are_independent():
    counts = parse_noise("poisson2").corrupt(torch.full((1, 2, 300, 300), 0.6), rng(1)).noisy[0]
    error = (counts - counts.mean()) / counts.std()
    for values, other in [(error[0], error[1]), (error[:, 1:], error[:, :-1]), (error[..., 1:], error[..., :-1])]:
        assert abs((values * other).mean()) < 5 / values.numel() ** 0.5


def test_the_parts_of_a_rate_are_independent():
    """A rate of 65.5 is 64 + 1 + 0.5: the sum of correlated counts would vary too much."""
    counts = poisson(torch.full((1, 400_000), 65.5, dtype=torch.float64), 100, rng(1))
    assert counts.var() == pytest.approx(65.5, rel=5 * (2 / 400_000) ** 0.5)


def test_bright_values_are_not_clipped():
    noisy = parse_noise("poisson10").corrupt(torch.ones(1, 1, 200, 200), rng(1)).noisy
    assert noisy.max() > 1.5
    assert noisy.min() < 0.5
    assert torch.allclose(noisy * 10, (noisy * 10).round(), atol=1e-5)  # whole photons


def test_black_stays_black_and_so_does_what_is_below_it():
    clean = torch.tensor([0.0, -0.2]).view(1, 1, 1, 2).expand(1, 3, 50, 2)
    assert parse_noise("poisson1000").corrupt(clean, rng(1)).noisy.eq(0).all()


def test_what_inference_mode_left_in_the_cache_is_fit_for_training():
    from denoise.noise.poisson import _table

    _table.cache_clear()
    clean = torch.full((1, 1, 8, 8), 0.5)
    with torch.inference_mode():
        parse_noise("poisson100").corrupt(clean, rng(1))
    weight = torch.ones(1, requires_grad=True)
    (parse_noise("poisson100").corrupt(clean, rng(1)).noisy * weight).square().sum().backward()
    assert weight.grad is not None

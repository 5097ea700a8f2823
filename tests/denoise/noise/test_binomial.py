import numpy as np
import pytest
import torch
from scipy import stats

from denoise.noise.binomial import LARGEST_COUNT, binomial
from denoise.rng import batch_rng


def draw(count, share, size, largest=4095):
    counts = torch.full((1, size), count)
    return binomial(counts, share, largest, batch_rng(0, 0, torch.arange(1))).long().numpy().ravel()


@pytest.mark.parametrize(("count", "share"), [(1, 0.15), (5, 0.5), (63, 0.15), (64, 0.9), (200, 0.15), (4095, 0.02)])
def test_counts_are_binomially_distributed(count, share):
    size = 400_000
    draws = draw(count, share, size)
    # Counts of fewer than 20 expected hits are joined: the tails, each as one cell.
    inside = [hits for hits in range(count + 1) if stats.binom.pmf(hits, count, share) * size >= 20]
    first, last = inside[0], inside[-1]
    edges = np.arange(first, last + 1)
    expected = stats.binom.pmf(edges, count, share)
    expected[0], expected[-1] = stats.binom.cdf(first, count, share), stats.binom.sf(last - 1, count, share)
    actual = np.bincount(draws.clip(first, last) - first, minlength=len(edges))
    assert stats.chisquare(actual, expected * size).pvalue > 1e-6


def test_a_draw_is_never_more_than_there_was():
    counts = torch.arange(4096).repeat(20)[None]
    draws = binomial(counts, 0.97, 4095, batch_rng(0, 0, torch.arange(1)))
    assert (draws <= counts).all()
    assert (draws >= 0).all()
    assert not draws[counts == 0].any()


def test_the_largest_count_has_mean_and_variance_of_its_distribution():
    size, share = 20_000, 0.15
    draws = draw(LARGEST_COUNT, share, size, LARGEST_COUNT)
    variance = LARGEST_COUNT * share * (1 - share)
    assert abs(draws.mean() - LARGEST_COUNT * share) < 5 * (variance / size) ** 0.5
    assert draws.var() == pytest.approx(variance, rel=5 * (2 / size) ** 0.5)


def test_samples_and_places_have_numbers_of_their_own():
    draws = binomial(torch.full((2, 3, 40, 40), 50), 0.5, 63, batch_rng(0, 0, torch.arange(2))) - 25
    assert draws.shape == (2, 3, 40, 40)
    for values, other in [(draws[0], draws[1]), (draws[..., 1:], draws[..., :-1]), (draws[:, 0], draws[:, 1])]:
        assert abs((values * other).mean()) < 5 * 12.5 / values.numel() ** 0.5

import numpy as np
import pytest
import torch
from scipy import stats

from denoise.noise import parse_noise
from denoise.rng import batch_rng

OUTSIDE = -1.0  # no colour has this value: a pixel that has it is unchanged


def corrupted(name, channels=3, samples=1, size=300):
    clean = torch.full((samples, channels, size, size), OUTSIDE)
    return parse_noise(name).corrupt(clean, batch_rng(0, 0, torch.arange(samples)))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_the_stated_share_of_pixels_is_replaced_as_a_whole(share):
    unchanged = corrupted(f"impulse{share}").noisy == OUTSIDE
    assert torch.equal(unchanged.any(1), unchanged.all(1))
    assert 1 - unchanged.float().mean().item() == pytest.approx(
        share, abs=5 * (share * (1 - share)) ** 0.5 / 300 + 1e-7
    )


def test_a_colour_is_uniform_and_its_channels_are_independent():
    noisy = corrupted("impulse0.5").noisy[0]
    colours = noisy[:, noisy[0] != OUTSIDE]
    for channel in colours:
        actual = np.histogram(channel, bins=64, range=(0, 1))[0]
        assert actual.sum() == colours.shape[1]
        assert stats.chisquare(actual).pvalue > 1e-6
    correlation = torch.corrcoef(colours) - torch.eye(3)
    assert correlation.abs().max() < 5 / colours.shape[1] ** 0.5


def test_the_colour_does_not_depend_on_why_the_pixel_was_replaced():
    """A pixel is replaced where a uniform number is small; were that number its colour it would be dark too."""
    colour = corrupted("impulse0.1", channels=1).noisy
    colour = colour[colour != OUTSIDE]
    assert abs(colour.mean() - 0.5) < 5 * 12**-0.5 / len(colour) ** 0.5


def test_mean_and_variance_are_those_of_the_mixture():
    share, shade, size = 0.3, 0.8, 300 * 300
    observed = parse_noise("impulse0.3").corrupt(torch.full((1, 1, 300, 300), shade), batch_rng(0, 0, torch.arange(1)))
    mean = share / 2 + (1 - share) * shade
    variance = share / 3 + (1 - share) * shade**2 - mean**2
    assert observed.noisy.mean() == pytest.approx(mean, abs=5 * (variance / size) ** 0.5)
    assert observed.noisy.var() == pytest.approx(variance, abs=5 * (1 / 4) * (variance / size) ** 0.5)


def test_every_sample_of_a_range_has_its_own_share():
    observed = corrupted("impulse0_1", samples=200, size=32)
    replaced = (observed.noisy[:, :1] != OUTSIDE).float().mean((2, 3), keepdim=True)
    assert (replaced - observed.level).abs().max() < 5 * 0.5 / 32

import pytest
import torch

from denoise.noise import parse_noise
from denoise.rng import batch_rng


def test_gaussian_noise_has_the_stated_mean_and_deviation():
    clean = torch.full((2, 3, 200, 200), 0.5)
    observed = parse_noise("gauss25").corrupt(clean, batch_rng(0, 0, torch.arange(2)))
    error, sigma = observed.noisy - clean, 25 / 255
    assert torch.allclose(observed.level, torch.tensor(sigma))
    assert abs(error.mean()) < 5 * sigma / error.numel() ** 0.5
    assert error.std() == pytest.approx(sigma, rel=5 / (2 * error.numel()) ** 0.5)


def test_gaussian_noise_is_never_clipped():
    black = torch.zeros(1, 1, 300, 300)
    noisy = parse_noise("gauss25").corrupt(black, batch_rng(0, 0, torch.arange(1))).noisy
    assert abs(noisy.mean()) < 5 * 25 / 255 / 300  # clipping would lift it to 0.039
    assert noisy.min() < -0.3


def test_every_sample_of_a_range_has_the_noise_of_its_level():
    observed = parse_noise("gauss5_50").corrupt(torch.zeros(400, 1, 8, 8), batch_rng(0, 0, torch.arange(400)))
    scaled = (observed.noisy / observed.level).square().flatten(1).mean(1)
    assert (scaled - 1).abs().max() < 6 * (2 / 64) ** 0.5  # the largest of 400


def test_clipped_noise_is_the_same_noise_clipped_and_lifts_black():
    keys, black = batch_rng(0, 0, torch.arange(1)), torch.zeros(1, 1, 300, 300)
    noisy, clipped = (parse_noise(name).corrupt(black, keys) for name in ("gauss25", "clippedgauss25"))
    assert torch.equal(clipped.noisy, noisy.noisy.clamp(0, 1))
    assert torch.equal(clipped.level, noisy.level)
    assert clipped.noisy.mean() == pytest.approx(25 / 255 / (2 * torch.pi) ** 0.5, rel=0.02)

import pytest
import torch

from denoise.errors import UserError
from denoise.noise import Gaussian, parse_noise
from denoise.rng import batch_rng


@pytest.mark.parametrize("name", ["gauss25", "gauss5_50", "gauss12.5", "gauss0.5_3"])
def test_a_name_survives_parsing(name):
    assert parse_noise(name).name == name


@pytest.mark.parametrize("name", ["gaus25", "gauss", "gauss-5", "gauss50_5", "gauss0", "25", "gauss25 "])
def test_a_wrong_name_is_told(name):
    with pytest.raises(UserError, match="gauss"):
        parse_noise(name)


def test_gaussian_noise_has_the_stated_mean_and_deviation():
    clean = torch.full((2, 3, 200, 200), 0.5)
    noisy, sigma = parse_noise("gauss25").corrupt(clean, batch_rng(0, 0, torch.arange(2)))
    noise = noisy - clean
    assert torch.allclose(sigma, torch.tensor(25 / 255))
    assert abs(noise.mean()) < 5 * 25 / 255 / noise.numel() ** 0.5
    assert noise.std() == pytest.approx(25 / 255, rel=0.01)


def test_noise_is_never_clipped():
    black = torch.zeros(1, 1, 300, 300)
    noisy, _ = parse_noise("gauss25").corrupt(black, batch_rng(0, 0, torch.arange(1)))
    assert abs(noisy.mean()) < 0.002  # clipping would lift it to 0.039
    assert noisy.min() < -0.3


def test_a_range_draws_one_sigma_a_sample():
    clean = torch.zeros(400, 1, 8, 8)
    noisy, sigma = Gaussian(5, 50).corrupt(clean, batch_rng(0, 0, torch.arange(400)))
    levels = sigma.flatten() * 255
    assert sigma.shape == (400, 1, 1, 1)
    assert levels.min() >= 5
    assert levels.max() <= 50
    assert levels.mean() == pytest.approx(27.5, abs=3)
    assert torch.allclose((noisy / sigma).std(), torch.tensor(1.0), atol=0.03)


def test_sigma_does_not_depend_on_the_picture():
    rng = batch_rng(0, 0, torch.arange(3))
    sigmas = [Gaussian(5, 50).corrupt(clean, rng)[1] for clean in (torch.zeros(3, 1, 4, 4), torch.rand(3, 1, 4, 4))]
    assert torch.equal(*sigmas)

"""Autocorrelation of residuals."""

import pytest
import torch

from denoise.noise import parse_noise
from denoise.quality import autocorrelation, known_noise, structure
from tests.denoise.quality.test_sure import key


def test_the_map_of_noise_is_that_of_its_covariance() -> None:
    noise = parse_noise("corr25_0.8")
    drawn = noise.corrupt(torch.full((1, 3, 200, 200), 0.5), key(0)).noisy[0]
    found, expected = autocorrelation(drawn), known_noise(noise, 25 / 255).correlation_map(8)
    assert found.shape == expected.shape == (17, 17)
    assert (found - expected).abs().max().item() < 0.03
    assert torch.equal(found, found.flip(0, 1))


def test_detail_in_a_residual_is_found_at_its_distance() -> None:
    white = 0.1 * key(1).normal(1, 200, 200)[0]
    stripes = 0.1 * torch.arange(200).remainder(4).lt(2).float()[None, None].expand(1, 200, 200)
    none, some = (
        structure(autocorrelation(residual), known_noise(parse_noise("gauss25"), 0.1).correlation_map(8))
        for residual in (white, white + stripes)
    )
    assert abs(none.excess) < 0.03
    assert abs(some.excess) > 0.1
    assert some.lag[1] % 2 == 0


def test_a_small_image_has_a_map() -> None:
    assert autocorrelation(torch.rand(3, 5, 4))[8, 8].item() == pytest.approx(1)

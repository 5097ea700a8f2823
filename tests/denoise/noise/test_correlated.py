"""Gaussian noise that is correlated between neighbours."""

import math

import pytest
import torch

from denoise.errors import UserError
from denoise.methods import METHODS, build_method
from denoise.noise import parse_noise
from denoise.rng import batch_rng


def noise_of(name, channels=2, side=300):
    """The noise of 4 samples, in units of sigma."""
    image = torch.full((4, channels, side, side - 20), 0.5)
    observed = parse_noise(name).corrupt(image, batch_rng(0, 0, torch.arange(4)))
    return (observed.noisy - image) / observed.level


@pytest.mark.parametrize(("name", "width"), [("corr25_0.8", 0.8), ("corr5_1.5", 1.5), ("corr40_2", 2.0)])
def test_variance_and_correlation(name, width):
    noise = noise_of(name)
    assert noise.mean().abs() < 0.03
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (3, 0)):
        first = noise[..., : noise.shape[-2] - dy, : noise.shape[-1] - dx]
        measured = (first * noise[..., dy:, dx:]).mean().item()
        assert measured == pytest.approx(math.exp(-(dy**2 + dx**2) / (4 * width**2)), abs=0.04)


def test_channels_are_independent_and_the_border_is_as_noisy_as_the_middle():
    noise = noise_of("corr25_0.8")
    assert (noise[:, 0] * noise[:, 1]).mean().abs() < 0.02
    edges = torch.cat([noise[..., 0, :].flatten(), noise[..., -1].flatten()])
    assert edges.std().item() == pytest.approx(1, abs=0.05)
    assert (noise[..., 0, :-20] * noise[..., -1, :-20]).mean().abs() < 0.1  # it does not wrap around


@pytest.mark.parametrize("name", ["ssdn", "r2r", "sure", "noisier2noise", "bm3d"])
def test_methods_of_gaussian_noise_take_it_only_where_they_are_told_to(name):
    noise = parse_noise("corr25_0.8")
    with pytest.raises(UserError, match=f"method={name} is not defined for noise=corr25_0.8"):
        build_method(name, {}, noise)
    if "family" in METHODS[name].__dataclass_fields__:
        assert build_method(name, {"family": "gauss"}, noise) == build_method(name, {}, parse_noise("gauss25"))

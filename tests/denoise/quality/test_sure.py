"""Stein's risk estimate against linear filters, whose trace is known, and against the truth."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from denoise.errors import UserError
from denoise.noise import parse_noise
from denoise.quality import LocalNoise, known_noise, sure
from denoise.rng import batch_rng


def scene(channels: int = 1, side: int = 192) -> Tensor:
    """A smooth scene between 0.2 and 0.8."""
    axis = torch.linspace(0, 3 * math.pi, side)
    image = 0.5 + 0.15 * (axis.sin()[:, None] + axis.cos()[None])
    return image.expand(channels, side, side).clone()


def smooth(image: Tensor) -> Tensor:
    """The mean of 3x3 pixels, as if the image went on at its other side: trace(J) = N / 9."""
    weights = torch.full((1, 1, 3, 3), 1 / 9)
    return conv2d(pad(image[:, None], (1, 1, 1, 1), mode="circular"), weights)[:, 0]


def soft(image: Tensor) -> Tensor:
    """A filter that is not linear: detail below a threshold is removed."""
    base = smooth(smooth(image))
    return base + torch.nn.functional.softshrink(image - base, 0.15)


def key(number: int):
    return batch_rng(0, 0, torch.tensor([number]))


def test_the_trace_of_a_linear_filter_is_exact() -> None:
    """Averaged over probes the estimate is mean (f(y) - y)^2 - sigma^2 (1 - 2/9)."""
    noise = known_noise(parse_noise("gauss25"), 25 / 255)
    noisy = scene() + noise.draw(scene(), key(0))
    restored = smooth(noisy)
    found = sure(smooth, noisy, restored, noise, key(1), probes=16)
    exact = found.fidelity - (25 / 255) ** 2 * (1 - 2 / 9)
    error = 2 * (25 / 255) ** 2 * math.sqrt(2 / 9 / noisy.numel() / 16)  # of b.Jb: sqrt(2) |J|, |J|^2 = N / 9
    assert found.mse == pytest.approx(exact, abs=4 * error)


def test_the_trace_does_not_depend_on_the_step_for_a_linear_filter() -> None:
    noise = known_noise(parse_noise("gauss25"), 25 / 255)
    noisy = scene() + noise.draw(scene(), key(0))
    estimates = [sure(smooth, noisy, smooth(noisy), noise, key(1), step=step).mse for step in (0.01, 0.03, 1.0)]
    assert max(estimates) - min(estimates) < 1e-3 * estimates[0]


@pytest.mark.parametrize("name", ["gauss25", "poisson30", "corr25_0.8"])
@pytest.mark.parametrize("restore", [smooth, soft])
def test_it_is_unbiased_for_known_noise(name: str, restore) -> None:
    """Over 12 draws the mean difference from the truth is within its scatter, and within 6 % of the error."""
    noise, clean = parse_noise(name), scene()
    differences, truths = [], []
    for number in range(12):
        observed = noise.corrupt(clean[None], key(number))
        noisy, local = observed.noisy[0], known_noise(noise, float(observed.level))
        restored = restore(noisy)
        truths.append((restored - clean).square().mean().item())
        differences.append(sure(restore, noisy, restored, local, key(100 + number)).mse - truths[-1])
    mean, spread = torch.tensor(differences).mean().item(), torch.tensor(differences).std().item()
    assert abs(mean) < 3 * spread / math.sqrt(12) + 0.01 * sum(truths) / 12
    assert abs(mean) < 0.06 * sum(truths) / 12


def test_correlated_noise_taken_for_white_is_far_off() -> None:
    noise, clean = parse_noise("corr25_0.8"), scene()
    noisy = noise.corrupt(clean[None], key(0)).noisy[0]
    restored = smooth(noisy)
    truth = (restored - clean).square().mean().item()
    white = LocalNoise(0.0, (25 / 255) ** 2)
    assert sure(smooth, noisy, restored, white, key(1)).mse < 0.5 * truth


def test_the_standard_error_is_as_large_as_the_scatter() -> None:
    noise, clean = parse_noise("gauss25"), scene()
    local = known_noise(noise, 25 / 255)
    found = []
    for number in range(30):
        noisy = noise.corrupt(clean[None], key(number)).noisy[0]
        restored = smooth(noisy)
        estimate = sure(smooth, noisy, restored, local, key(100 + number))
        found.append((estimate.mse - (restored - clean).square().mean().item(), estimate.standard_error))
    scatter = torch.tensor([difference for difference, _ in found]).square().mean().sqrt().item()
    stated = sum(error for _, error in found) / len(found)
    assert scatter / 1.5 < stated < 2.5 * scatter


@pytest.mark.parametrize("channels", [1, 3])
def test_drawn_noise_has_the_covariance_it_is_drawn_with(channels: int) -> None:
    mixing = torch.eye(channels) * 0.4 + 0.6
    noise = replace(known_noise(parse_noise("corr25_0.8"), 0.1), slope=0.02, offset=0.0, channels=mixing)
    bright = torch.full((channels, 256, 256), 0.5)
    drawn = noise.draw(bright, key(3))
    assert drawn.var().item() == pytest.approx(0.01, rel=0.05)
    beside = (drawn[..., 1:] * drawn[..., :-1]).mean() / drawn.square().mean()
    assert beside.item() == pytest.approx(math.exp(-1 / (4 * 0.64)), abs=0.03)
    if channels == 3:
        assert torch.corrcoef(drawn.flatten(1))[0, 1].item() == pytest.approx(0.6, abs=0.03)


def test_noise_of_unknown_covariance_is_refused() -> None:
    with pytest.raises(UserError, match=r"impulse0\.5 cannot be estimated.*gauss, corr, poisson, or none"):
        known_noise(parse_noise("impulse0.5"), 0.5)

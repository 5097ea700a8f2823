"""Noise measured between flat blocks: level and correlation without the bias of a choice by the noise itself."""

import pytest
import torch

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.noise import parse_noise
from denoise.noise_meter import measure_noise
from denoise.quality import known_noise, measure_local_noise
from denoise.quality.local_noise import measured_noise
from tests.denoise.quality.test_sure import key, scene


def noisy_images(name, clean):
    noise = parse_noise(name)
    return [noise.corrupt(image[None], key(number)).noisy[0] for number, image in enumerate(clean)]


@pytest.mark.parametrize("name", ["gauss15", "poisson30", "corr15_0.6", "corr15_0.8"])
def test_level_and_correlation_are_those_of_the_noise(name):
    clean = [scene(side=384)] * 4
    noisy = noisy_images(name, clean)
    true = torch.stack([(image - clean[0]).square().mean() for image in noisy]).mean().item()
    found = measure_local_noise(4, noisy.__getitem__)
    assert found.variance(clean[0]).mean().item() == pytest.approx(true, rel=0.05)
    known = known_noise(parse_noise(name), 0.1)
    assert (found.correlation_map(8) - known.correlation_map(8)).abs().max().item() < 0.06
    assert 0 < found.uncertainty < 0.1


def test_the_meters_own_blocks_hold_too_little_of_correlated_noise():
    clean = [scene(side=384)] * 4
    noisy = noisy_images("corr15_0.8", clean)
    meter, between = measured_noise(measure_noise(4, noisy.__getitem__)), measure_local_noise(4, noisy.__getitem__)
    assert meter.variance(clean[0]).mean() < 0.93 * between.variance(clean[0]).mean()


def test_photographs(photographs):
    clean = [to_tensor(read_image(photographs / name).pixels) for name in ("astronaut.png", "coffee.png")]
    noisy = noisy_images("corr25_0.8", clean)
    found = measure_local_noise(2, noisy.__getitem__)
    assert found.variance(torch.tensor(0.4)).sqrt().item() == pytest.approx(25 / 255, rel=0.05)
    assert found.correlation_map(8)[9, 8].item() == pytest.approx(0.677, abs=0.05)


def test_images_without_flat_blocks_side_by_side_are_measured_by_the_meter_alone():
    """Of 64x64 pixels no block has another on both sides that shares no pixel with it."""
    clean = [scene(side=384)[:, 10 * number : 10 * number + 64, :64] for number in range(12)]
    noisy = noisy_images("gauss15", clean)
    assert (
        measure_local_noise(12, noisy.__getitem__).slope == measured_noise(measure_noise(12, noisy.__getitem__)).slope
    )


def test_too_little_to_measure_is_said():
    with pytest.raises(UserError, match="the noise cannot be measured"):
        measure_local_noise(1, lambda number: scene(side=40))

"""The noise of images, measured from the noisy images alone."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.noise_meter import measure_noise


def blur(noise, width):
    """Noise (C, H, W) filtered by a Gaussian, with the variance that it had; the border wraps."""
    if not width:
        return noise
    axis = torch.arange(-4, 5, dtype=noise.dtype)
    weights = torch.exp(-axis.square() / (2 * width**2))
    weights = (weights / weights.square().sum().sqrt()).view(1, 1, 1, -1)
    padded = F.pad(noise[:, None], [4] * 4, mode="circular")
    return F.conv2d(F.conv2d(padded, weights), weights.transpose(2, 3))[:, 0]


def corrupted(clean, sigma=0.0, slope=0.0, width=0.0, seed=0):
    """A clean image with noise of variance slope * value + sigma^2, as 8 bits hold it."""
    generator = torch.Generator().manual_seed(seed)
    noise = blur(torch.randn(clean.shape, generator=generator), width)
    noisy = clean + (slope * clean + (sigma / 255) ** 2).sqrt() * noise
    return noisy.clamp(0, 1).mul(255).round().div(255)


def measured(images):
    return measure_noise(len(images), lambda number: images[number])


@pytest.fixture(scope="module")
def plain():
    """Four images of shaded areas with edges between them and a corner of texture, of most brightnesses."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:260, :320] / 260
    images = []
    for angle in (0.3, 1.1, 2.0, 2.6):
        shade = 0.15 + 0.5 * (np.sin(3 * (x * math.cos(angle) + y * math.sin(angle))) + 1) / 2
        shade += 0.2 * ((2 * x + y + angle).astype(int) % 2)
        shade[200:, 200:] = rng.uniform(0.1, 0.9, (60, 120))  # takes no part: it is not flat
        images.append(torch.tensor(np.stack([shade, 0.9 * shade, 0.8 * shade]), dtype=torch.float32))
    return images


@pytest.mark.parametrize("sigma", [5.0, 15.0, 25.0])
@pytest.mark.parametrize(("width", "lag1", "lag2"), [(0.0, 0.0, 0.0), (0.6, 0.44, 0.03), (1.0, 0.77, 0.36)])
def test_level_and_correlation(plain, sigma, width, lag1, lag2):
    found = measured([corrupted(image, sigma, width=width, seed=n) for n, image in enumerate(plain)])
    for at in (0.3, 0.5, 0.7):
        assert 255 * found.sigma(at) == pytest.approx(sigma, rel=0.12 if width == 1 else 0.06)
    for right, down in ((1, 0), (0, 1)):
        assert found.lag(down, right) == pytest.approx(lag1, abs=0.07)
        assert found.lag(2 * down, 2 * right) == pytest.approx(lag2, abs=0.12)
    assert found.lag(0, 0) == pytest.approx(1)
    assert found.lag(-1, 1) == found.lag(1, -1)
    assert found.channels.diagonal().tolist() == pytest.approx([1, 1, 1])
    assert found.channels[0, 1:].abs().max() < 0.15


@pytest.mark.parametrize(("slope", "sigma"), [(0.01, 5.0), (1 / 30, 0.0), (0.002, 2.0)])
def test_level_against_brightness(plain, slope, sigma):
    found = measured([corrupted(image, sigma, slope, seed=n) for n, image in enumerate(plain)])
    for at in (0.2, 0.4, 0.6):
        assert found.sigma(at) == pytest.approx(math.sqrt(slope * at + (sigma / 255) ** 2), rel=0.1)


def test_channels_that_share_their_noise(plain):
    images = [corrupted(image[:1].expand(3, -1, -1), seed=n) for n, image in enumerate(plain)]
    generator = torch.Generator().manual_seed(9)
    shared = [image + 0.05 * torch.randn(1, *image.shape[1:], generator=generator) for image in images]
    assert measured(shared).channels.min() > 0.95


def test_stripes_reach_along_rows_only(plain):
    generator = torch.Generator().manual_seed(1)
    rows = [image + 0.05 * torch.randn(3, image.shape[1], 1, generator=generator) for image in plain]
    found = measured(rows)
    assert found.lag(0, 8) > 0.9
    assert found.lag(1, 0) < 0.1


def test_grey_images_of_several_sizes(plain):
    images = [corrupted(image[:1, : 260 - 9 * n, 3 * n :], 15, seed=n) for n, image in enumerate(plain)]
    found = measured(images)
    assert found.channels.tolist() == [[1.0]]
    assert 255 * found.sigma() == pytest.approx(15, rel=0.06)


def test_strong_noise_leaves_blocks_with_some_saturated_values(plain):
    found = measured([corrupted(image, 60, seed=n) for n, image in enumerate(plain)])
    assert found.saturated_share > 0.02
    assert 255 * found.sigma() == pytest.approx(60, rel=0.15)


def test_images_without_noise(plain):
    found = measured(plain)
    assert found.sigma() < 1 / 255
    assert found.correlation.isfinite().all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 23, 400), 0.5), "hold 0 blocks of 24x24 pixels"),
        (torch.full((1, 60, 60), 0.5), "hold 16 blocks"),
        (torch.zeros(3, 300, 300), "nearly all of the images lies at the ends of their range"),
    ],
)
def test_what_cannot_be_measured(image, message):
    with pytest.raises(UserError, match=message):
        measured([image])


def test_a_constant_image_has_no_noise():
    found = measured([torch.full((3, 300, 300), 0.5)])
    assert found.sigma() == pytest.approx(0, abs=1e-9)
    assert found.correlation.isfinite().all()


@pytest.mark.parametrize("sigma", [15, 25])
def test_white_noise_on_photographs_is_not_called_correlated(mirror, sigma):
    files = sorted((mirror / "cbsd68").rglob("*.png"))[:32]
    for start in range(0, 32, 8):
        clean = [to_tensor(read_image(file).pixels) for file in files[start : start + 8]]
        found = measured([corrupted(image, sigma, seed=n) for n, image in enumerate(clean)])
        assert max(abs(found.lag(0, 1)), abs(found.lag(1, 0))) < 0.1
        assert 255 * found.sigma() == pytest.approx(sigma, rel=0.1)


def test_the_correlation_of_a_cameras_noise(mirror):
    files = sorted((mirror / "polyu").rglob("*_real.JPG"))[::5]
    errors = []
    for file in files:
        noisy, mean = (
            to_tensor(read_image(path).pixels) for path in (file, file.with_name(file.name.replace("_real", "_mean")))
        )
        noise = (noisy - mean)[None]
        noise = noise - F.avg_pool2d(F.pad(noise, [8] * 4, mode="reflect"), 17, 1)
        true = ((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean()).item()
        errors.append(abs(measured([noisy]).lag(0, 1) - true))
    assert np.median(errors) < 0.1

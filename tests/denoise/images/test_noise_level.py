import pytest
import torch

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.noise_level import _covariance, _layout, _noise_variance, estimate_sigma
from denoise.images.tensors import to_tensor
from denoise.noise import parse_noise
from denoise.rng import batch_rng


def noisy(clean, sigma, position=0):
    rng = batch_rng(0, 0, torch.tensor([position]))
    return parse_noise(f"gauss{sigma}").corrupt(clean[None], rng).noisy[0]


@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_the_level_of_kodak_images_is_found(mirror, sigma):
    errors = []
    for position, path in enumerate(sorted((mirror / "kodak").glob("*.png"))[::3]):
        clean = to_tensor(read_image(path).pixels)
        errors.append(estimate_sigma(noisy(clean, sigma, position)) * 255 / sigma - 1)
    assert len(errors) == 8
    assert abs(sum(errors) / len(errors)) < 0.01
    assert max(map(abs, errors)) < 0.03


@pytest.mark.parametrize("sigma", [5, 25])
def test_the_level_of_a_photograph_is_found(photographs, sigma):
    clean = to_tensor(read_image(photographs / "coffee.png").pixels)
    assert estimate_sigma(noisy(clean, sigma)) * 255 == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize(("channels", "size"), [(3, 21), (3, 32), (3, 64), (3, 256), (1, 13), (1, 40), (1, 180)])
def test_a_small_flat_image_has_the_level_of_its_noise(channels, size):
    flat = torch.full((channels, size, size), 0.5)
    actual = torch.tensor([estimate_sigma(noisy(flat, 25, position)) * 255 / 25 for position in range(8)])
    # The estimate is a mean of about C H W squares, most of which count; bias by too few patches stays below 3 %.
    assert abs(actual.mean() - 1) < 0.03 + 5 / (2 * channels * size**2 * 8) ** 0.5


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 12, 12), (3, 1, 5000), (1, 1, 1), (3, 0, 8)])
def test_an_image_that_is_too_small_is_reported(shape):
    with pytest.raises(UserError, match="too small"):
        estimate_sigma(torch.zeros(shape))


def test_an_image_without_noise_has_none():
    assert estimate_sigma(torch.full((3, 64, 64), 0.7)) == pytest.approx(0, abs=1e-6)


def test_level_and_brightness_scale_as_the_image_does(photographs):
    image = noisy(to_tensor(read_image(photographs / "coffee.png").pixels)[:, :200, :200], 25)
    sigma = estimate_sigma(image)
    assert estimate_sigma(image / 2 + 3) == pytest.approx(sigma / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("shape", "side", "layout"),
    [
        ((3, 512, 768), 8, (8, 3)),
        ((1, 321, 481), 8, (8, 3)),
        ((3, 256, 256), 8, (8, 2)),
        ((3, 64, 64), 8, (6, 1)),
        ((3, 512, 512), 16, (16, 2)),
        ((1, 64, 64), 4, (4, 2)),
    ],
)
def test_patches_are_as_published_or_wanted_where_the_image_allows(shape, side, layout):
    assert _layout(*shape, side) == layout


def test_the_covariance_is_that_of_all_patches():
    image = torch.rand(2, 40, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image[1] += torch.linspace(0, 1, 40)[:, None]
    vectors = torch.nn.functional.unfold(image[None], 5, stride=2)[0]
    expected = torch.cov(vectors, correction=0)
    assert torch.allclose(_covariance(image, 5, 2), expected, atol=1e-12)


def test_a_large_image_has_no_more_patches_than_stated():
    patch, stride = _layout(3, 4000, 6000)
    assert patch == 8
    assert 80_000 < (4000 // stride) * (6000 // stride) <= 100_000


@pytest.mark.parametrize(
    ("eigenvalues", "variance"),
    [
        ([1, 1, 1, 1, 9], 1),  # the largest is dropped always
        ([0.8, 0.9, 1.0, 1.1, 1.2, 5, 30], 1),  # and so is whatever lifts the mean above the median
        ([0.8, 0.9, 1.1, 1.2, 5, 30], 1),
        ([2, 7], 2),
        ([0, 0, 0], 0),
    ],
)
def test_the_largest_eigenvalues_are_dropped_until_mean_and_median_agree(eigenvalues, variance):
    actual = _noise_variance(torch.tensor(eigenvalues, dtype=torch.float64))
    assert actual.item() == pytest.approx(variance)

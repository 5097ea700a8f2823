"""What holds for every noise."""

import pytest
import torch

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.noise import NOISES, parse_noise
from denoise.rng import batch_rng

pytestmark = pytest.mark.smoke

NAMES = [
    *("gauss25", "clippedgauss25", "corr25_0.8", "poisson30", "bernoulli0.5", "impulse0.5", "text0.25", "subsample8"),
    "none",
]
RANDOM = NAMES[:-1]
RANGES = ["gauss5_50", "clippedgauss5_50", "poisson0.001_50", "bernoulli0_0.95", "impulse0_1", "text0_0.5"]


def rng(samples, seed=0):
    return batch_rng(seed, 0, torch.arange(samples))


@pytest.fixture(scope="module")
def image(photographs):
    """Two different crops of a real photograph."""
    pixels = to_tensor(read_image(photographs / "coffee.png").pixels)
    return torch.stack([pixels[:, 100:148, 200:264], pixels[:, 200:248, 100:164]])


def test_every_noise_is_tested():
    assert {parse_noise(name).family for name in NAMES} == set(NOISES)


@pytest.mark.parametrize("name", [*NAMES, *RANGES, "gauss12.5", "gauss0.5_3", "poisson5_50", "impulse0_0.95"])
def test_a_name_survives_parsing(name):
    assert parse_noise(name).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gaus25", r"did you mean gauss\?.*gauss25.*poisson30.*none"),
        ("poison30", r"did you mean poisson\?"),
        ("gauss", "lacks its number; write gauss25"),
        ("poisson", "lacks its number; write poisson30"),
        ("gauss-5", "did you mean gauss"),
        ("gauss50_5", "the smaller one first; write gauss25"),
        ("gauss0", "from 0.01 to 255"),
        ("25", "not a known noise; write gauss25"),
        ("gauss25 ", "not a known noise"),
        ("gauss25_", "not a known noise"),
        ("gauss٢٥", "not a known noise"),
        ("poisson0", "from 0.001 to 1000"),
        ("poisson2000", "from 0.001 to 1000"),
        ("bernoulli1", "from 0 to 0.99"),
        ("impulse1.5", "from 0 to 1"),
        ("text0.95", "from 0 to 0.9"),
        (
            "corr25",
            "two different numbers, a sigma from 0.01 to 255 and a width from 0.3 to 5 pixels; write corr25_0.8",
        ),
        ("corr25_0.1", "a width from 0.3 to 5 pixels"),
        ("corr300_1", "a sigma from 0.01 to 255"),
        ("subsample", "lacks its number"),
        ("subsample1", "from 2 to 64"),
        ("subsample2.5", "one whole number"),
        ("subsample2_8", "one whole number"),
        ("none5", "has a number"),
        ("none0", "has a number"),
        ("", "not a known noise"),
    ],
)
def test_a_wrong_name_is_reported(name, message):
    with pytest.raises(UserError, match=f"noise={name}.*{message}"):
        parse_noise(name)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("name", [*NAMES, *RANGES])
def test_what_is_observed_has_the_stated_shapes(name, grey, image):
    clean = image[:, :1] if grey else image
    before = clean.clone()
    noise = parse_noise(name)
    observed = noise.corrupt(clean, rng(2))
    assert observed.noisy.shape == noise.reference(clean).shape
    assert observed.noisy.dtype == observed.level.dtype == torch.float32
    assert observed.level.shape == (2, 1, 1, 1)
    assert (observed.mask is not None) == (noise.family == "bernoulli")
    assert torch.equal(clean, before)


@pytest.mark.parametrize("name", [*NAMES, *RANGES])
def test_the_same_keys_make_the_same_noise(name, image):
    first, again = (parse_noise(name).corrupt(image, rng(2)) for _ in range(2))
    assert torch.equal(first.noisy, again.noisy)
    assert torch.equal(first.level, again.level)


@pytest.mark.parametrize("name", [*RANDOM, *RANGES])
def test_a_sample_is_the_same_alone_as_in_a_batch(name, image):
    both = parse_noise(name).corrupt(image, rng(2))
    second = parse_noise(name).corrupt(image[1:], batch_rng(0, 0, torch.tensor([1])))
    assert torch.equal(both.noisy[1:], second.noisy)
    assert torch.equal(both.level[1:], second.level)


@pytest.mark.parametrize("name", RANDOM)
def test_other_keys_make_other_noise(name, image):
    first, second = (parse_noise(name).corrupt(image, rng(2, seed)).noisy for seed in (0, 1))
    assert (first != second).any(1).float().mean() > 0.1


@pytest.mark.parametrize("name", ["gauss25", "corr25_0.8", "poisson30", "bernoulli0.5", "impulse0.5", "subsample2"])
def test_two_samples_have_independent_noise(name):
    texture = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    same = (texture if name == "subsample2" else torch.full_like(texture, 0.4)).expand(2, -1, -1, -1)
    noise = parse_noise(name)
    error = (noise.corrupt(same, rng(2)).noisy - noise.reference(same)).flatten(1)
    assert abs(torch.corrcoef(error)[0, 1]) < 5 / error.shape[1] ** 0.5


@pytest.mark.parametrize("name", RANGES)
def test_a_range_draws_one_level_a_sample_uniformly(name):
    from scipy.stats import kstest

    noise = parse_noise(name)
    level = noise.corrupt(torch.full((500, 1, 8, 8), 0.5), rng(500)).level.flatten().numpy()
    assert kstest(level / noise.unit, "uniform", (noise.low, noise.high - noise.low)).pvalue > 1e-6
    assert noise.level is None


@pytest.mark.parametrize("name", RANDOM)
def test_one_level_is_stated_before_any_image_is_seen(name, image):
    noise = parse_noise(name)
    assert torch.allclose(noise.corrupt(image, rng(2)).level, torch.tensor(noise.level), rtol=1e-6)


@pytest.mark.parametrize("name", [*NAMES, *RANGES])
def test_the_level_does_not_depend_on_the_image(name, image):
    levels = [parse_noise(name).corrupt(clean, rng(2)).level for clean in (image, torch.zeros_like(image))]
    assert torch.equal(*levels)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*NAMES, *RANGES])
def test_a_gpu_makes_the_same_noise(gpu, name, image):
    host = parse_noise(name).corrupt(image, rng(2))
    there = parse_noise(name).corrupt(image.to(gpu), rng(2).on(gpu))
    assert there.noisy.device == gpu
    assert torch.allclose(host.noisy, there.noisy.cpu(), atol=1e-5)
    assert torch.equal(host.level, there.level.cpu())

import pytest
import torch

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.metrics import psnr
from denoise.images.tensors import to_tensor
from denoise.noise import parse_noise
from denoise.rng import batch_rng


def rng(samples):
    return batch_rng(0, 0, torch.arange(samples))


def numbered(height, width, channels=3):
    """An image of which every pixel tells its place, and every channel which one it is."""
    places = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    return torch.cat([places + channel * 1e6 for channel in range(channels)], 1)


def test_the_images_are_larger_than_what_is_observed():
    assert parse_noise("subsample8").scale == 8
    assert parse_noise("subsample8").corrupt(torch.zeros(1, 3, 256, 256), rng(1)).noisy.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (19, 31)])
def test_one_pixel_of_its_own_block_stands_for_all_channels(height, width):
    image = numbered(height, width)
    noisy = parse_noise("subsample8").corrupt(image, rng(1)).noisy[0]
    assert noisy.shape == (3, height // 8, width // 8)
    assert torch.equal(noisy[1] - 1e6, noisy[0])
    assert torch.equal(noisy[2] - 2e6, noisy[0])
    rows, columns = noisy[0].long() // width, noisy[0].long() % width
    assert torch.equal(rows // 8, torch.arange(height // 8)[:, None].expand_as(rows))
    assert torch.equal(columns // 8, torch.arange(width // 8).expand_as(columns))


def test_every_pixel_of_a_block_is_as_likely():
    from scipy.stats import chisquare

    noisy = parse_noise("subsample4").corrupt(numbered(400, 400, 1), rng(1)).noisy.flatten().long()
    place = noisy // 400 % 4 * 4 + noisy % 400 % 4
    assert chisquare(place.bincount(minlength=16)).pvalue > 1e-6


def test_the_clean_image_is_the_mean_of_the_blocks():
    image = torch.rand(2, 3, 17, 26, generator=torch.Generator().manual_seed(0))
    clean = parse_noise("subsample8").reference(image)
    assert clean.shape == (2, 3, 2, 3)
    assert clean[1, 2, 1, 2] == pytest.approx(image[1, 2, 8:16, 16:24].mean().item(), abs=1e-6)


def test_observations_have_the_clean_image_as_their_mean():
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = parse_noise("subsample8")
    observed = noise.corrupt(image.expand(4000, -1, -1, -1), rng(4000)).noisy.mean(0)
    assert (observed - noise.reference(image)[0]).abs().max() < 5 * (1 / 12 / 4000) ** 0.5


def test_an_image_smaller_than_a_block_is_reported():
    for use in (parse_noise("subsample8").reference, lambda p: parse_noise("subsample8").corrupt(p, rng(1))):
        with pytest.raises(UserError, match="8x8 pixels or more, got 9x7"):
            use(torch.zeros(1, 3, 7, 9))


def test_real_images_become_as_noisy_as_the_published_pairs(mirror):
    """The two EE-559 reports measure about 19.6 dB on pixel images of ImageNet crops."""
    noise, scores = parse_noise("subsample8"), []
    for position, path in enumerate(sorted((mirror / "imagenet" / "val").rglob("*.JPEG"))):
        pixels = read_image(path).pixels
        if min(pixels.shape[:2]) >= 256 and pixels.shape[2] == 3:
            top, left = (pixels.shape[0] - 256) // 2, (pixels.shape[1] - 256) // 2
            crop = to_tensor(pixels[top : top + 256, left : left + 256])[None]
            noisy = noise.corrupt(crop, batch_rng(0, 0, torch.tensor([position]))).noisy
            scores.append(psnr(noisy[0], noise.reference(crop)[0]))
    assert len(scores) > 20
    assert 18.5 < sum(scores) / len(scores) < 20.7

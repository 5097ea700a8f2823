import math

import numpy as np
import pytest
import torch

from denoise.images.io import read_image
from denoise.images.metrics import UNIFORM, WANG, bias, psnr, ssim, ssim_uniform
from denoise.images.tensors import to_tensor

pytestmark = pytest.mark.smoke


def test_psnr_from_its_formula():
    clean = torch.zeros(3, 8, 8)
    assert psnr(clean + 0.1, clean) == pytest.approx(20, abs=1e-5)
    assert psnr(clean + 25 / 255, clean) == pytest.approx(20 * math.log10(255 / 25), abs=1e-5)


def test_equal_images():
    clean = torch.rand(3, 16, 16)
    assert psnr(clean, clean) == math.inf
    assert ssim(clean, clean) == pytest.approx(1)


def test_ssim_falls_with_noise(photographs):
    clean = to_tensor(read_image(photographs / "camera.png").pixels)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    values = [ssim(clean + sigma * noise, clean) for sigma in (0.02, 0.1, 0.3)]
    assert 1 > values[0] > values[1] > values[2] > 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 40), (3, 2, 2), (1, 5, 7)])
def test_tiny_images_have_an_ssim(shape):
    clean = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert ssim(clean, clean) == ssim_uniform(clean, clean) == pytest.approx(1)


def pair(shape, kind):
    """A restored and a clean image: noise of different strength, outside [0, 1] too, or constant images."""
    draw = torch.Generator().manual_seed(sum(shape))
    if kind == "constant":
        return torch.full(shape, 0.3), torch.full(shape, 0.7)
    clean = torch.rand(shape, generator=draw)
    return clean + (1.0 if kind == "noisy" else 0.03) * torch.randn(shape, generator=draw), clean


SHAPES = [
    (1, 11, 11),
    (3, 11, 40),
    (3, 12, 11),
    (1, 97, 61),
    (3, 256, 256),
    (3, 31, 1200),
    (1, 5, 7),
    (3, 2, 30),
    (1, 1, 1),
]


@pytest.mark.parametrize("kind", ["noisy", "restored", "constant"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 230, 900)], ids=str)
def test_scores_equal_those_of_scikit_image(shape, kind):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    restored, clean = pair(shape, kind)
    arrays = [image.double().numpy() for image in (clean, restored)]
    assert psnr(restored, clean) == pytest.approx(peak_signal_noise_ratio(*arrays, data_range=1.0), abs=1e-9)
    wang = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for score, window, settings in ((ssim, WANG, wang), (ssim_uniform, UNIFORM, {"data_range": 2.0})):
        missing = [(0, 0)] + [(0, max(0, window.side - side)) for side in shape[1:]]
        extended = [np.pad(array, missing, mode="symmetric") for array in arrays]
        expected = structural_similarity(*extended, channel_axis=0, **settings)
        assert score(restored, clean) == pytest.approx(expected, abs=1e-9)


def test_scores_change_no_image():
    restored, clean = pair((1, 20, 20), "noisy")
    copies = restored.double(), clean.double()
    psnr(*copies), ssim(*copies)
    assert torch.equal(copies[0], restored.double())
    assert torch.equal(copies[1], clean.double())


def test_the_bias_is_the_mean_difference():
    restored, clean = pair((3, 20, 20), "restored")
    assert bias(clean + 0.25, clean) == pytest.approx(0.25)
    assert bias(restored, clean) == pytest.approx((restored.double() - clean.double()).mean().item())


def test_an_image_that_is_not_finite_has_no_finite_psnr():
    clean = torch.rand(1, 16, 16)
    assert psnr(clean / 0, clean) == -math.inf
    assert math.isnan(psnr(clean * math.nan, clean))

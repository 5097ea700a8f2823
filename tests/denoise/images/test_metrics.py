import math

import pytest
import torch

from denoise.images.io import read_image
from denoise.images.metrics import psnr, ssim
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
    assert ssim(clean, clean) == pytest.approx(1)

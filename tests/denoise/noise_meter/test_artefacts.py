"""Traces of JPEG and of saturation."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.noise_meter import block_edges, saturated_share


@pytest.fixture(scope="module")
def noisy():
    """A shaded area with noise of sigma 10."""
    y, x = np.mgrid[:240, :320] / 240
    shade = np.stack([0.3 + 0.4 * np.sin(2 * x + y), 0.3 + 0.3 * y, 0.5 + 0.2 * np.cos(3 * x)], -1)
    noise = np.random.default_rng(0).normal(0, 10 / 255, shade.shape)
    return (np.clip(shade + noise, 0, 1) * 255).round().astype(np.uint8)


def as_jpeg(pixels, quality):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return to_tensor(read_image(stream.getvalue()).pixels)


def test_jpeg_leaves_edges_every_8_pixels(noisy):
    assert block_edges(to_tensor(noisy)) < 0.03
    strong = as_jpeg(noisy, 50)
    assert block_edges(strong) > 0.3
    assert block_edges(strong[:, 3:, 5:]) > 0.3  # a crop has the grid elsewhere
    assert block_edges(as_jpeg(noisy, 75)) > 0.08


def test_edges_in_one_direction_are_no_jpeg(noisy):
    bars = to_tensor(noisy).clone()
    bars[..., ::8] += 0.2
    assert block_edges(bars) < 0.05


def test_images_without_steps_or_too_small():
    assert block_edges(torch.full((3, 64, 64), 0.5)) == 0
    assert block_edges(torch.rand(1, 15, 300)) == 0


def test_saturated_values():
    assert saturated_share(torch.tensor([[[0.0, 0.5, 1.0, 1.0]]])) == 0.75

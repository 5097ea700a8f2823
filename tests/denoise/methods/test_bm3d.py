"""BM3D, the baseline that is not trained."""

import importlib
import sys

import pytest
import torch
from torch import nn

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.methods import build_method
from denoise.noise import parse_noise
from denoise.rng import batch_rng

NOISE = parse_noise("gauss25")


def bm3d(noise=NOISE):
    return build_method("bm3d", {}, noise)


def test_it_is_not_trained_and_needs_sigma():
    method = bm3d()
    assert not method.trained
    assert method.needs_level()
    assert method.views() == ()
    assert not list(method.make_net(None).parameters())
    for attempt in (lambda: method.make_batch({}, None), lambda: method.loss(nn.Identity(), {}, 0.0)):
        with pytest.raises(UserError, match="bm3d is not trained"):
            attempt()
    with pytest.raises(UserError, match="needs the level"):
        method.predict(nn.Identity(), torch.rand(1, 3, 16, 16), None, None)


def test_where_the_package_is_missing_the_user_is_shown_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)  # what makes Python's own import fail
    with pytest.raises(UserError, match=r"not installed; if your use is non-commercial.*pip install 'noise2x\[bm3d\]'"):
        bm3d().predict(nn.Identity(), torch.rand(1, 3, 16, 16), torch.full((1, 1, 1, 1), 0.1), None)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_removes_most_of_the_noise(photographs, channels):
    try:
        importlib.import_module("bm3d")
    except ImportError:
        pytest.skip("needs the package bm3d, an extra for non-commercial use: pip install 'noise2x[bm3d]'")
    clean = to_tensor(read_image(photographs / "coffee.png").pixels)[None, :channels, 100:164, 100:164]
    clean = torch.cat([clean, clean.flip(2)])
    sigma = torch.tensor([10 / 255, 50 / 255]).view(2, 1, 1, 1)
    noisy = clean + sigma * batch_rng(0, 0, torch.arange(2)).normal(*clean.shape[1:])
    restored = bm3d().predict(nn.Identity(), noisy, sigma, None)
    error, noise = ((image - clean).square().mean((1, 2, 3)) for image in (restored, noisy))
    assert restored.dtype == noisy.dtype
    assert (error < torch.tensor([0.5, 0.15]) * noise).all(), error / noise

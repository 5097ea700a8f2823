"""Noise2Same."""

import pytest
import torch
from torch import nn

from denoise.methods import build_method
from denoise.noise import parse_noise
from denoise.rng import batch_rng

NOISE = parse_noise("gauss25")


def n2same(**fields):
    return build_method("n2same", fields, NOISE)


def batch_of(method, noisy):
    views = {"noisy": noisy, "mask": torch.ones(len(noisy), 1, 1, 1)}
    return method.make_batch(views, batch_rng(0, 0, torch.arange(len(noisy))))


def test_the_loss_written_out():
    noisy = torch.rand(2, 3, 20, 20)
    method = n2same(mask_ratio=0.04, lambda_inv=3.0)
    batch = batch_of(method, noisy)
    net = nn.Conv2d(3, 3, 3, padding=1)
    terms = method.loss(net, batch, 0)
    with torch.no_grad():
        restored, blind = net(noisy), net(batch["hidden_input"])
    expected = 0.0
    for i in range(2):
        hidden = batch["hidden"][i].bool()
        root = (restored[i] - blind[i])[hidden].square().mean().sqrt()
        deviation = (noisy[i] - noisy[i].mean()).square().mean().sqrt()
        expected += ((restored[i] - noisy[i]).square().mean() + 3.0 * deviation * root) / 2
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((terms["reconstruction"] + 3 * terms["invariance"]).item())


def test_the_loss_scales_as_that_of_normalised_images_would():
    """An image stretched by 4 has 16 times the loss: no term weighs more in it."""
    method, net = n2same(mask_ratio=0.04), nn.Conv2d(3, 3, 3, padding=1, bias=False)
    noisy = torch.rand(2, 3, 20, 20)
    small, large = (method.loss(net, batch_of(method, scale * noisy), 0)["loss"] for scale in (1, 4))
    assert large.item() == pytest.approx(16 * small.item(), rel=1e-4)


def test_hidden_pixels_are_drawn_around_the_mean_of_the_sample():
    noisy = torch.rand(40, 3, 60, 60) * torch.linspace(0.1, 1, 40).view(-1, 1, 1, 1)
    batch = batch_of(n2same(mask_ratio=0.25), noisy)
    hidden = batch["hidden"].bool()
    mean, deviation = noisy.mean((1, 2, 3), keepdim=True), noisy.std((1, 2, 3), keepdim=True)
    drawn = ((batch["hidden_input"] - mean) / deviation)[hidden].double()
    assert abs(drawn.mean()) < 5 * 0.2 / len(drawn) ** 0.5
    assert abs(drawn.var() - 0.04) < 5 * 0.04 * (2 / len(drawn)) ** 0.5
    assert torch.equal(batch["hidden_input"][~hidden], noisy[~hidden])
    assert torch.equal(batch["input"], noisy)


def test_the_share_of_hidden_pixels_is_half_a_percent_by_default():
    hidden = batch_of(n2same(), torch.rand(100, 3, 56, 56))["hidden"]
    assert hidden.sum() == 100 * 3 * 16  # boxes of 14
    assert not torch.equal(hidden[:, 0], hidden[:, 1])


@pytest.mark.parametrize("shape", [(1, 3, 20, 20), (2, 1, 4, 4)])
def test_a_net_that_ignores_its_input_has_a_finite_gradient(shape):
    """The root has an infinite slope where nothing changes, as in a crop smaller than a box or a constant net."""
    method, bias = n2same(), torch.zeros((), requires_grad=True)
    method.loss(lambda x: 0 * x + bias, batch_of(method, torch.rand(shape)), 0)["loss"].backward()
    assert bias.grad.isfinite()
    assert bias.grad != 0


def test_lost_pixels_do_not_count_in_the_reconstruction():
    noisy, mask = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    noisy[..., 4:] = 1
    mask[..., 4:] = 1
    batch = n2same().make_batch({"noisy": noisy, "mask": mask}, batch_rng(0, 0, torch.arange(1)))
    assert n2same().loss(torch.ones_like, batch, 0)["reconstruction"] == 0

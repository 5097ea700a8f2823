"""Blind2Unblind."""

import pytest
import torch
from torch import nn

from denoise.methods import build_method
from denoise.methods.blind_grid import fill_hidden, grid_mask, neighbour_mean
from denoise.noise import parse_noise
from denoise.rng import batch_rng

NOISE = parse_noise("gauss25")


def b2u(**fields):
    return build_method("b2u", fields, NOISE)


def batch_of(method, noisy):
    views = {"noisy": noisy, "mask": torch.ones(len(noisy), 1, 1, 1)}
    return method.make_batch(views, batch_rng(0, 0, torch.arange(len(noisy))))


def tiny_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1))


def blind_output(net, noisy, cell):
    """What the mask mapper collects, pass by pass."""
    collected = torch.full_like(noisy, torch.nan)
    for phase in range(cell**2):
        hidden = grid_mask(noisy, cell, torch.tensor([phase])).expand_as(noisy)
        collected[hidden] = net(fill_hidden(noisy, hidden))[hidden]
    return collected


@pytest.mark.parametrize("cell", [2, 4])
def test_the_copies_hide_each_pixel_once(cell):
    noisy = torch.rand(3, 2, 8, 12)
    copies = batch_of(b2u(cell=cell), noisy)["input"]
    assert copies.shape == (3, cell**2, 2, 8, 12)
    hidden = copies != noisy[:, None]
    assert torch.equal(hidden.sum(1), torch.ones(3, 2, 8, 12, dtype=torch.int64))
    assert torch.equal(copies[hidden].sort().values, neighbour_mean(noisy).flatten().sort().values)


@pytest.mark.parametrize(("progress", "beta"), [(0.0, 2.0), (0.5, 2.0), (0.8, 2.0), (0.9, 11.0), (1.0, 20.0)])
def test_the_loss_written_out(progress, beta):
    method, net, noisy = b2u(alpha=0.5), tiny_net(), torch.rand(2, 2, 8, 8)
    terms = method.loss(net, batch_of(method, noisy), progress)
    with torch.no_grad():
        blind, visible = blind_output(net, noisy, 4) - noisy, net(noisy) - noisy
    expected = 0.5 * blind.square().mean() + (blind + beta * visible).square().mean()
    assert method.beta(progress) == pytest.approx(beta)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_beta_may_be_held_to_the_end():
    assert b2u(hold=1.0).beta(1.0) == 2


def test_no_gradient_flows_through_the_visible_output():
    method, net, noisy = b2u(), tiny_net(), torch.rand(1, 2, 8, 8)
    method.loss(net, batch_of(method, noisy), 0)["loss"].backward()
    actual = net[0].weight.grad.clone()
    net.zero_grad()
    batch = batch_of(method, noisy)
    masks = grid_mask(noisy, 4, torch.arange(16))
    diff = (net(batch["input"].flatten(0, 1)) * masks).sum(0, keepdim=True) - noisy
    visible = (net(noisy) - noisy).detach()
    (diff.square().mean() + (diff + 2 * visible).square().mean()).backward()
    assert torch.allclose(actual, net[0].weight.grad, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_the_prediction_weighs_the_blind_and_the_visible_output(size):
    net, noisy = tiny_net().eval(), torch.rand(2, 2, *size)
    with torch.no_grad():
        restored = b2u(beta_end=19.0).predict(net, noisy, None, None)
        expected = (blind_output(net, noisy, 4) + 19 * net(noisy)) / 20
        assert torch.allclose(restored, expected, atol=1e-6)
        assert torch.equal(b2u(fast=True).predict(net, noisy, None, None), net(noisy))


def test_the_prediction_costs_17_passes_and_the_fast_one_a_single_one():
    calls = []
    net = lambda x: calls.append(1) or x  # noqa: E731
    b2u().predict(net, torch.rand(1, 1, 8, 8), None, None)
    assert len(calls) == 17
    b2u(fast=True).predict(net, torch.rand(1, 1, 8, 8), None, None)
    assert len(calls) == 18


def test_lost_pixels_do_not_count():
    method, noisy, mask = b2u(), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    noisy[..., 4:] = 0.5
    mask[..., 4:] = 1
    batch = method.make_batch({"noisy": noisy, "mask": mask}, batch_rng(0, 0, torch.arange(1)))
    assert method.loss(lambda x: torch.full_like(x, 0.5), batch, 0)["loss"] == 0

"""Noise2Self and the grid that it shares with Blind2Unblind."""

import pytest
import torch
from torch import nn

from denoise.methods import build_method
from denoise.methods.blind_grid import fill_hidden, grid_mask, neighbour_mean
from denoise.methods.noise2self import restore_hidden
from denoise.noise import parse_noise
from denoise.rng import batch_rng

NOISE = parse_noise("gauss25")
ONES = torch.ones(1, 1, 1, 1)


def n2s(**fields):
    return build_method("n2s", fields, NOISE)


def tiny_net(channels=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), nn.Tanh(), nn.Conv2d(6, channels, 3, padding=1)
    ).eval()  # fmt: skip


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("cell", [2, 4])
def test_the_masks_of_all_phases_visit_each_pixel_once(size, cell):
    masks = grid_mask(torch.zeros(size), cell, torch.arange(cell**2))
    assert masks.shape == (cell**2, 1, *size)
    assert torch.equal(masks.sum(0), torch.ones(1, *size, dtype=torch.int64))
    assert masks[1, 0, 0, 1]
    assert masks[cell, 0, 1, 0]


def test_a_filled_pixel_is_the_weighted_mean_of_its_neighbours():
    image = torch.arange(25.0).view(1, 1, 5, 5).square()
    p = image[0, 0]
    inner = (2 * (p[0, 1] + p[2, 1] + p[1, 0] + p[1, 2]) + p[0, 0] + p[0, 2] + p[2, 0] + p[2, 2]) / 12
    corner = (2 * (p[0, 1] + p[1, 0]) + p[1, 1]) / 5
    filled = neighbour_mean(image)[0, 0]
    assert filled[1, 1] == pytest.approx(inner.item())
    assert filled[0, 0] == pytest.approx(corner.item())


def test_filling_keeps_a_flat_image_flat_up_to_the_border():
    assert torch.allclose(neighbour_mean(torch.full((2, 3, 6, 7), 0.7)), torch.tensor(0.7))


def test_the_input_is_filled_where_the_mask_counts_and_nowhere_else():
    noisy = torch.rand(16, 3, 12, 12)
    batch = n2s().make_batch({"noisy": noisy, "mask": ONES.expand(16, -1, -1, -1)}, batch_rng(0, 0, torch.arange(16)))
    assert torch.equal(batch["target"], noisy)
    assert torch.equal((batch["input"] != noisy).any(1, keepdim=True), batch["mask"].bool())
    assert torch.equal(batch["mask"].sum((1, 2, 3)), torch.full((16,), 9.0))


def test_every_phase_is_drawn_equally_often():
    samples = 16_000
    noisy = torch.zeros(samples, 1, 4, 4)
    views = {"noisy": noisy, "mask": ONES.expand(samples, -1, -1, -1)}
    counts = n2s().make_batch(views, batch_rng(0, 0, torch.arange(samples)))["mask"].sum((0, 1)).flatten()
    chi_square = ((counts - samples / 16) ** 2 / (samples / 16)).sum()
    assert abs(chi_square - 15) < 5 * 30**0.5


def test_what_the_net_says_of_a_hidden_pixel_does_not_depend_on_any_hidden_pixel():
    noisy, net = torch.rand(1, 1, 12, 12), tiny_net()
    mask = grid_mask(noisy, 4, torch.tensor([6]))
    other = torch.where(mask, torch.rand_like(noisy), noisy)
    first, second = net(fill_hidden(noisy, mask)), net(fill_hidden(other, mask))
    assert torch.equal(first[mask], second[mask])


@pytest.mark.parametrize("width", [2, 4])
def test_each_restored_pixel_is_blind_to_itself_and_sees_its_neighbours(width):
    noisy = torch.rand(1, 1, 9, 9, dtype=torch.float64)
    net = tiny_net().double()
    jacobian = torch.autograd.functional.jacobian(lambda x: n2s(width=width).predict(net, x, None, None), noisy)
    jacobian = jacobian.view(81, 81)
    assert (jacobian.diagonal() == 0).all()
    centre = jacobian[4 * 9 + 4].view(9, 9)[3:6, 3:6].flatten()
    assert (centre != 0).sum() == 8
    plain = torch.autograd.functional.jacobian(
        lambda x: n2s(j_invariant=False).predict(net, x, None, None), noisy
    ).view(81, 81)
    assert (plain.diagonal() != 0).all()


def test_restoring_takes_every_pixel_from_the_pass_that_hides_it():
    noisy = torch.rand(2, 3, 8, 6)
    assert torch.equal(restore_hidden(nn.Identity(), noisy, 4), neighbour_mean(noisy))


def test_pixels_that_are_known_to_be_lost_do_not_count():
    lost = torch.zeros(2, 1, 8, 8)
    lost[..., 4:] = 1
    batch = n2s().make_batch({"noisy": torch.rand(2, 1, 8, 8), "mask": lost}, batch_rng(0, 0, torch.arange(2)))
    assert batch["mask"].sum() == 4
    assert not batch["mask"][..., :4].any()

"""Neighbor2Neighbor."""

import pytest
import torch
from torch import nn

from denoise.methods import build_method
from denoise.methods.neighbor2neighbor import PAIRS, sub_image
from denoise.noise import parse_noise
from denoise.rng import batch_rng

NOISE = parse_noise("gauss25")


def nb2nb(**fields):
    return build_method("nb2nb", fields, NOISE)


def batch_of(method, noisy, step=0, mask=None):
    views = {"noisy": noisy, "mask": torch.ones(len(noisy), 1, 1, 1) if mask is None else mask}
    return method.make_batch(views, batch_rng(0, step, torch.arange(len(noisy))))


def test_sub_images_written_out():
    image = torch.tensor(
        [
            [0.0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9, 10, 11],
            [12, 13, 14, 15],
        ]
    ).view(1, 1, 4, 4)
    image = torch.cat([image, image + 100], dim=1)
    pair = torch.tensor([[[PAIRS.index((0, 1)), PAIRS.index((3, 1))], [PAIRS.index((2, 0)), PAIRS.index((2, 3))]]])
    first, second = sub_image(image, pair, 0), sub_image(image, pair, 1)
    assert first[0].tolist() == [[[0, 7], [12, 14]], [[100, 107], [112, 114]]]
    assert second[0].tolist() == [[[1, 3], [8, 15]], [[101, 103], [108, 115]]]


def test_the_eight_edge_adjacent_pairs_come_equally_often_and_no_diagonal_ever():
    cells = torch.tensor([[0.0, 1], [2, 3]]).repeat(100, 100)
    batch = batch_of(nb2nb(), cells.expand(4, 1, -1, -1))
    drawn = torch.stack([batch["input"].flatten(), batch["target"].flatten()], 1).long()
    pairs, counts = drawn.unique(dim=0, return_counts=True)
    assert {tuple(pair) for pair in pairs.tolist()} == {
        (0, 1), (1, 0), (0, 2), (2, 0), (1, 3), (3, 1), (2, 3), (3, 2)
    }  # fmt: skip
    expected = len(drawn) / 8
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 7) < 5 * 14**0.5


def test_cells_samples_and_steps_draw_for_themselves():
    noisy = torch.rand(3, 1, 32, 32)
    pair = batch_of(nb2nb(), noisy)["pair"]
    assert len({tuple(sample.flatten().tolist()) for sample in pair}) == 3
    assert pair[0].unique().numel() == 8
    assert not torch.equal(pair, batch_of(nb2nb(), noisy, step=1)["pair"])
    assert torch.equal(pair, batch_of(nb2nb(), noisy)["pair"])


def test_channels_share_their_pairs():
    grey = torch.rand(2, 1, 8, 8)
    batch = batch_of(nb2nb(), grey.expand(-1, 3, -1, -1))
    assert torch.equal(batch["input"][:, 0], batch["input"][:, 2])


@pytest.mark.parametrize(("ramp", "progress", "weight"), [(True, 0.0, 0.0), (True, 0.25, 0.75), (False, 0.25, 3.0)])
def test_the_loss_written_out(ramp, progress, weight):
    torch.manual_seed(0)
    method, net = nb2nb(gamma=3.0, ramp=ramp), nn.Conv2d(2, 2, 3, padding=1)
    noisy = torch.rand(2, 2, 8, 8)
    batch = batch_of(method, noisy)
    g1, g2 = (lambda x, side=side: sub_image(x, batch["pair"], side) for side in (0, 1))
    residual = net(g1(noisy)) - g2(noisy)
    regular = residual - (g1(net(noisy)) - g2(net(noisy)))
    expected = residual.square().mean() + weight * regular.square().mean()
    assert method.loss(net, batch, progress)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_gradient_flows_through_the_restored_whole_image():
    torch.manual_seed(0)
    method, net = nb2nb(ramp=False), nn.Conv2d(1, 1, 3, padding=1)
    noisy = torch.rand(1, 1, 8, 8)
    batch = batch_of(method, noisy)
    method.loss(net, batch, 1.0)["loss"].backward()
    actual = net.weight.grad.clone()
    g1, g2 = (lambda x, side=side: sub_image(x, batch["pair"], side) for side in (0, 1))
    gap = (g1(net(noisy)) - g2(net(noisy))).detach()
    residual = net(g1(noisy)) - g2(noisy)
    net.weight.grad = None
    (residual.square().mean() + 2 * (residual - gap).square().mean()).backward()
    assert torch.allclose(actual, net.weight.grad)
    net.weight.grad = None
    residual = net(g1(noisy)) - g2(noisy)
    gap = g1(net(noisy)) - g2(net(noisy))
    (residual.square().mean() + 2 * (residual - gap).square().mean()).backward()
    assert not torch.allclose(actual, net.weight.grad)


def test_the_expected_loss_of_the_identity_on_a_flat_image_is_twice_the_variance():
    noisy = 0.5 + 0.1 * torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    terms = nb2nb().loss(nn.Identity(), batch_of(nb2nb(), noisy), 1.0)
    count = 16 * 3 * 32 * 32
    assert abs(terms["reconstruction"] - 0.02) < 5 * 0.02 * (2 / count) ** 0.5
    assert terms["regularisation"] == 0  # the identity commutes with taking sub-images


class Pooling(nn.Module):
    """Refuses sides that it cannot halve five times."""

    multiple = 32

    def forward(self, noisy):
        assert all(side % 32 == 0 for side in noisy.shape[-2:])
        return nn.functional.interpolate(nn.functional.max_pool2d(noisy, 32), scale_factor=32) + noisy


@pytest.mark.parametrize("side", [32, 96, 50])
def test_a_net_of_multiple_32_gets_sub_images_that_suit_it(side):
    terms = nb2nb().loss(Pooling(), batch_of(nb2nb(), torch.rand(1, 3, side, side)), 0.5)
    assert terms["loss"].isfinite()


def test_an_odd_image_loses_its_last_row():
    batch = batch_of(nb2nb(), torch.rand(1, 3, 9, 8))
    assert batch["input"].shape == (1, 3, 4, 4)
    assert batch["noisy"].shape == (1, 3, 8, 8)


def test_a_target_that_is_known_to_be_lost_does_not_count():
    noisy = torch.zeros(1, 1, 8, 8)
    mask = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    noisy[mask == 1] = 0.25
    terms = nb2nb().loss(lambda x: torch.full_like(x, 0.25), batch_of(nb2nb(), noisy, mask=mask), 1.0)
    assert terms["reconstruction"] == 0


def test_without_regularisation_the_whole_image_is_not_restored():
    shapes = []
    method = nb2nb(gamma=0)
    method.loss(lambda x: shapes.append(x.shape[-1]) or x, batch_of(method, torch.rand(1, 1, 8, 8)), 0.5)
    assert shapes == [4]

"""AP-BSN: phases, the loss, and the refinement."""

import pytest
import torch
from torch import nn

from denoise.methods import build_method
from denoise.methods.apbsn import APBSN, by_phases
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from denoise.rng import batch_rng

RNG = batch_rng(0, 0, torch.arange(2))


class Records(nn.Module):
    """Returns half of what it is fed, and records it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, noisy):
        self.seen.append(noisy)
        return 0.5 * noisy


def test_the_net_sees_every_phase_as_an_image_and_the_image_comes_back():
    net, image = Records(), torch.rand(2, 3, 15, 20)
    assert torch.equal(by_phases(net, image, 5), 0.5 * image)
    (phases,) = net.seen
    assert phases.shape == (50, 3, 3, 4)
    for index in range(2):
        for row in range(5):
            for column in range(5):
                assert torch.equal(phases[25 * index + 5 * row + column], image[index, :, row::5, column::5])


def test_an_output_depends_on_its_phase_alone_and_not_on_its_pixel():
    torch.manual_seed(0)
    net = NetMaker("dbsn", 1, {"features": 8})(blind_spot=True)
    image = torch.rand(1, 1, 20, 20, requires_grad=True)
    by_phases(net, image, 5)[0, 0, 11, 7].backward()
    seen = image.grad[0, 0] != 0
    assert not seen[11, 7]
    assert not seen[[row for row in range(20) if row % 5 != 1]].any()
    assert not seen[:, [column for column in range(20) if column % 5 != 2]].any()
    assert seen.sum() > 8


def test_the_loss_is_the_mean_absolute_difference_of_whole_cells():
    noisy = torch.rand(2, 1, 13, 17)
    method = build_method("apbsn", {}, parse_noise("corr25_0.8"))
    batch = method.make_batch({"noisy": noisy}, RNG)
    assert batch["input"].shape == (2, 1, 10, 15)
    loss = method.loss(Records(), batch, 0)["loss"].item()
    assert loss == pytest.approx(0.5 * noisy[..., :10, :15].mean().item(), rel=1e-6)
    assert not method.assumes_independent_noise()


def test_without_refinement_the_phases_of_the_smaller_stride_are_the_result():
    net, noisy = Records(), torch.rand(2, 1, 9, 7)
    restored = APBSN(refinements=0).predict(net, noisy, None, RNG)
    assert torch.equal(restored, 0.5 * noisy)
    assert [seen.shape for seen in net.seen] == [(8, 1, 5, 4)]


def test_refinement_replaces_a_share_of_the_values_by_noisy_ones():
    net, noisy = Records(), torch.rand(2, 3, 64, 64) + 1
    restored = APBSN().predict(net, noisy, None, RNG)
    whole = net.seen[1:]
    assert len(whole) == 8
    for seen in whole:
        replaced = seen == noisy
        assert replaced.float().mean().item() == pytest.approx(0.16, abs=0.02)
        assert torch.equal(seen[~replaced], 0.5 * noisy[~replaced])
    assert not torch.equal(whole[0], whole[1])
    torch.testing.assert_close(restored, 0.5 * sum(whole) / 8)
    assert torch.equal(restored, APBSN().predict(Records(), noisy, None, RNG))


def test_its_network_and_its_size():
    net = APBSN().make_net(NetMaker("dbsn", 3, {}))
    assert sum(parameter.numel() for parameter in net.parameters()) == 3_656_131
    assert net.blind_spot

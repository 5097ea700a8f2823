import pytest
import torch

from denoise.noise import parse_noise
from denoise.rng import batch_rng


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.95])
def test_the_stated_share_of_pixels_is_lost_in_all_channels_and_nothing_else_changes(share):
    clean = torch.rand(2, 3, 200, 200, generator=torch.Generator().manual_seed(0)) + 0.1
    observed = parse_noise(f"bernoulli{share}").corrupt(clean, batch_rng(0, 0, torch.arange(2)))
    assert observed.mask.shape == (2, 1, 200, 200)
    assert set(observed.mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(observed.noisy, clean * observed.mask)
    lost = (observed.noisy == 0).float()
    assert lost.mean() == pytest.approx(share, abs=5 * (share * (1 - share) / 80_000) ** 0.5)
    assert torch.equal(lost[:, 0], lost[:, 2])


def test_losses_are_independent_of_their_neighbours():
    mask = parse_noise("bernoulli0.5").corrupt(torch.ones(1, 1, 300, 300), batch_rng(0, 0, torch.arange(1))).mask
    error = 2 * mask - 1
    assert abs((error[..., 1:] * error[..., :-1]).mean()) < 5 / 300
    assert abs((error[..., 1:, :] * error[..., :-1, :]).mean()) < 5 / 300


def test_every_sample_of_a_range_loses_its_own_share():
    observed = parse_noise("bernoulli0_0.95").corrupt(torch.ones(200, 1, 32, 32), batch_rng(0, 0, torch.arange(200)))
    lost = 1 - observed.mask.mean((2, 3), keepdim=True)
    assert (lost - observed.level).abs().max() < 5 * 0.5 / 32

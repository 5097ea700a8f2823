"""MASH: masks, shuffling, the gap that says how correlated noise is, and restoring one image."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.methods import build_method, observe
from denoise.methods.mash import MASH, masked, shuffled
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from denoise.rng import batch_rng

RNG = batch_rng(0, 0, torch.arange(1))


class Small(nn.Module):
    """Three convolutions."""

    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 24, 5, padding=2), nn.ReLU(), nn.Conv2d(24, 24, 5, padding=2), nn.ReLU(),
            nn.Conv2d(24, channels, 5, padding=2),
        )  # fmt: skip

    def forward(self, noisy):
        return self.layers(noisy)


def crop(photographs, noise, side=64):
    clean = to_tensor(read_image(photographs / "coffee.png").pixels)[None, :1, 100 : 100 + side, 100 : 100 + side]
    return clean, observe(clean, parse_noise(noise), ("noisy",), RNG)["noisy"]


def test_a_mask_hides_a_share_of_all_values_and_the_loss_is_of_the_hidden_ones():
    noisy = torch.rand(2, 3, 64, 64) + 1
    batch = masked(noisy, 0.8, batch_rng(0, 0, torch.arange(2)))
    hidden = batch["input"] == 0
    assert torch.equal(hidden.float(), batch["mask"])
    assert hidden.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (hidden[:, 0] != hidden[:, 1]).any()  # each channel has its own
    assert torch.equal(batch["input"][~hidden], noisy[~hidden])
    loss = MASH().loss(nn.Identity(), batch, 0)["loss"].item()
    per_image = [noisy[n][hidden[n]].square().mean() for n in range(2)]
    assert loss == pytest.approx(sum(per_image).item() / 2, rel=1e-5)


def test_pixels_are_shuffled_within_flat_tiles_and_nowhere_else():
    noisy, restored = torch.rand(1, 3, 13, 10), torch.full((1, 3, 13, 10), 0.5)
    restored[..., 4:8, 4:8] = torch.rand(4, 4)  # not flat
    mixed = shuffled(noisy, restored, 4, 0.02, RNG)
    assert torch.equal(mixed[..., 4:8, 4:8], noisy[..., 4:8, 4:8])
    assert torch.equal(mixed[..., 12:, :], noisy[..., 12:, :])  # left over
    assert torch.equal(mixed[..., 8:], noisy[..., 8:])
    before, after = (image[0, :, 8:12, :4].flatten(1) for image in (noisy, mixed))
    assert not torch.equal(before, after)
    assert torch.equal(*(pixels[:, pixels[0].argsort()] for pixels in (before, after)))  # whole pixels
    assert torch.equal(shuffled(noisy, restored, 4, 0.0, RNG), noisy)


def test_the_gap_is_larger_for_correlated_noise(photographs):
    method, net = MASH(steps=100), Small()
    gaps = [method.gap(net, crop(photographs, noise)[1], RNG) for noise in ("gauss25", "corr25_1.5")]
    assert gaps[1] > 2 * gaps[0], gaps


@pytest.mark.parametrize(
    ("gap", "fields", "expected"),
    [
        (1.0, {}, (0.2, False)),
        (2.0, {}, (0.5, False)),
        (3.0, {}, (0.8, True)),
        (3.0, {"shuffle": "no"}, (0.8, False)),
        (1.0, {"shuffle": "yes"}, (0.2, True)),
        (3.0, {"ratio": 0.3}, (0.3, True)),
    ],
)
def test_the_gap_decides_what_the_fields_leave_open(gap, fields, expected):
    assert MASH(**fields).choice(gap / 255) == expected


def test_training_on_the_image_alone_beats_the_noisy_image(photographs):
    clean, noisy = crop(photographs, "corr25_0.8")
    method, net = MASH(steps=200, masks=4, ratio=0.5, shuffle="yes"), Small()
    before = [parameter.clone() for parameter in net.parameters()]
    with torch.inference_mode():
        restored = method.predict(net, noisy, None, RNG)
    error, noise = ((image - clean).square().mean() for image in (restored, noisy))
    assert error < 0.75 * noise
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))


def test_an_image_is_restored_the_same_alone_and_in_a_batch():
    both, method = torch.rand(2, 1, 16, 16), MASH(steps=3, masks=2)
    with torch.inference_mode():
        together = method.predict(Small(), both, None, batch_rng(0, 0, torch.arange(2)))
        alone = method.predict(Small(), both[1:], None, batch_rng(0, 0, torch.tensor([1])))
    torch.testing.assert_close(together[1:], alone)


def test_its_network_is_that_of_noise2noise():
    assert MASH().net == "unet_n2n"
    with torch.inference_mode():
        net = NetMaker("unet_n2n", 1, {})()
        assert MASH(steps=2, masks=1).predict(net, torch.rand(1, 1, 32, 32), None, RNG).isfinite().all()


def test_it_takes_any_noise_and_refuses_impossible_masks():
    assert not build_method("mash", {}, parse_noise("corr25_0.8")).assumes_independent_noise()
    with pytest.raises(UserError, match="invalid value 1.0 for method.ratio"):
        build_method("mash", {"ratio": 1.0}, parse_noise("none"))


def test_a_constant_image_stays_finite():
    with torch.inference_mode():
        restored = MASH(steps=2, masks=1, shuffle="yes").predict(Small(), torch.zeros(1, 1, 9, 7), None, RNG)
    assert F.mse_loss(restored, torch.zeros_like(restored)) < 1

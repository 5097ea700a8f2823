"""What a denoiser does beyond one pass of its net: levels, passes, symmetries, methods without training."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from denoise.config import load_config, to_dict
from denoise.data.augment import symmetry_group
from denoise.denoiser import Denoiser, make_card, untrained_denoiser
from denoise.errors import UserError
from denoise.images.noise_level import estimate_sigma
from denoise.methods import build_method, with_net
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from denoise.rng import batch_rng
from denoise.tiling import restore_tensor

pytestmark = pytest.mark.smoke

SIGMA = 25 / 255


def denoiser(net, method="n2n", noise="gauss25", *overrides):
    config = with_net(load_config(None, [f"noise={noise}", f"method={method}", *overrides]))
    trained = build_method(method, config.method.fields, parse_noise(noise))
    return Denoiser(net.eval(), trained, make_card(to_dict(config), channels=3))


class Asymmetric(nn.Module):
    """Shifts and darkens, so that no symmetry leaves its output as it is."""

    def forward(self, noisy):
        return 0.5 * noisy + 0.5 * noisy.roll((1, 2), (-2, -1)) ** 2


def test_passes_are_averaged_each_with_its_own_randomness():
    recorrupting = denoiser(nn.Identity(), "r2r")
    noisy = torch.rand(1, 3, 64, 64)
    deviations = {passes: (replace(recorrupting, passes=passes)(noisy) - noisy).std().item() for passes in (1, 4, None)}
    assert deviations[1] == pytest.approx(0.5 * SIGMA, rel=0.03)
    assert deviations[4] == pytest.approx(0.5 * SIGMA / 2, rel=0.03)
    assert deviations[None] == pytest.approx(0.5 * SIGMA / 50**0.5, rel=0.03)  # as many as the paper


def test_the_same_keys_restore_the_same_and_others_do_not():
    recorrupting = replace(denoiser(nn.Identity(), "r2r"), passes=1)
    noisy = torch.rand(1, 3, 16, 16)
    key, other = (batch_rng(0, step, torch.arange(1)) for step in (0, 1))
    assert torch.equal(recorrupting(noisy, None, key), recorrupting(noisy, None, key))
    assert not torch.equal(recorrupting(noisy, None, key), recorrupting(noisy, None, other))


def test_averaging_follows_the_training_augmentation():
    net, noisy = Asymmetric(), torch.rand(1, 3, 8, 12)
    plain = denoiser(net)
    averaging = denoiser(net, "n2n", "gauss25", "train.augment=[flip, rotate]").averaging()
    assert (len(plain.averaging().symmetries), len(averaging.symmetries)) == (1, 8)
    assert torch.equal(plain.averaging()(noisy), plain(noisy))
    for symmetry in symmetry_group(("flip", "rotate")):
        torch.testing.assert_close(averaging(symmetry.apply(noisy)), symmetry.apply(averaging(noisy)))
        assert symmetry == symmetry_group(())[0] or not torch.allclose(
            plain(symmetry.apply(noisy)), symmetry.apply(plain(noisy))
        )


def test_the_level_is_that_of_the_training_noise_or_estimated():
    flat = 0.5 + SIGMA * batch_rng(0, 0, torch.arange(1)).normal(3, 128, 128)[0]
    assert denoiser(nn.Identity(), "r2r").level_of(flat) == pytest.approx(SIGMA)
    for noise in ("gauss5_50", "none"):
        assert denoiser(nn.Identity(), "r2r", noise).level_of(flat) == pytest.approx(SIGMA, rel=0.1)
    smaller = denoiser(nn.Identity(), "r2r", "none", "data.noise_patch=4").level_of(flat)
    assert smaller == estimate_sigma(flat, 4) != estimate_sigma(flat)
    assert denoiser(nn.Identity(), "r2r").needs_level
    assert not denoiser(nn.Identity()).needs_level


def test_a_method_that_is_not_trained_restores_by_its_name(photographs):
    from denoise.images.io import read_image
    from denoise.images.tensors import to_tensor

    noise = parse_noise("gauss25")
    clean = to_tensor(read_image(photographs / "coffee.png").pixels)[None, :, 100:132, 100:132]
    observed = noise.corrupt(clean, batch_rng(0, 0, torch.arange(1)))
    untrained = untrained_denoiser("zs_n2n", {"steps": 150}, 3, noise)
    restored = untrained(observed.noisy, observed.level)
    assert (untrained.name, untrained.noise, untrained.channels) == ("zs_n2n", "gauss25", 3)
    assert (restored - clean).square().mean() < 0.6 * (observed.noisy - clean).square().mean()
    assert torch.equal(restored, untrained_denoiser("zs_n2n", {"steps": 150}, 3, noise)(observed.noisy, observed.level))


def test_a_trained_method_cannot_be_used_without_training():
    with pytest.raises(UserError, match="n2n has to be trained first .* without training: zs_n2n, mash, bm3d"):
        untrained_denoiser("n2n", {}, 3, parse_noise("gauss25"))


def test_a_method_without_a_deviation_says_so():
    with pytest.raises(UserError, match="no standard deviation"):
        replace(denoiser(nn.Identity()), deviation=1.0)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("net", "crop", "given", "tiles"),
    [
        ("unet_ssdn", 128, {}, (128, 64)),
        ("unet_ssdn", 224, {}, (224, 64)),
        ("unet_ssdn", 256, {}, None),
        ("unet_ssdn", 64, {}, (64, 32)),
        ("unet_ssdn", 32, {}, (64, 32)),  # a tile of 32 has no room for an overlap of 32
        ("unet_ssdn", None, {}, None),  # a card that does not say it
        ("unet_ssdn", 64, {"tile": 100, "overlap": 20}, (128, 20)),
        ("unet_n2n", 64, {}, None),
        ("unet_n2n", 64, {"tile": 96}, (96, 48)),
        ("dncnn", 40, {"tile": 40}, (40, 20)),
    ],
)
def test_a_blind_spot_net_restores_by_tiles_of_its_crop(net, crop, given, tiles):
    card = make_card(to_dict(with_net(load_config(None, ["method=ssdn"]))), channels=1)
    card["config"]["train"] = {} if crop is None else {"crop": crop}
    form = {"blind_spot": True} if net == "unet_ssdn" else {}
    found = Denoiser(NetMaker(net, 1, {})(**form), build_method("n2n", {}, parse_noise("gauss25")), card, **given).tiles
    assert tiles == (found and (found.largest, found.least_overlap))


def test_a_plain_net_of_ssdns_kind_needs_no_tiles():
    assert denoiser(NetMaker("unet_ssdn", 3, {})(), "n2n", "gauss25", "net=unet_ssdn", "train.crop=64").tiles is None


@pytest.mark.parametrize(
    ("name", "fields", "radius"), [("ssdn", {"mu_only": True}, 0), ("atbsn", {"hole_at_test": 5}, 2)]
)
@pytest.mark.parametrize("at", [(40, 40), (31, 64), (63, 63), (5, 90)])  # in the middle, and where tiles meet
def test_a_blind_spot_stays_blind_when_an_image_is_restored_by_tiles(at, name, fields, radius):
    method = build_method(name, fields, parse_noise("gauss25"))
    torch.manual_seed(0)
    net = method.make_net(NetMaker("unet_ssdn", 1, {})).eval()
    card = make_card(to_dict(with_net(load_config(None, ["method=ssdn"]))), channels=1)
    noisy = torch.rand(1, 96, 96)
    changed = noisy.clone()
    changed[:, *at] += 10
    before, after = (
        restore_tensor(Denoiser(net, method, card), image, tile=64, overlap=32) for image in (noisy, changed)
    )
    difference = (after - before).abs()[0]
    row, column = at
    assert difference[row - radius : row + radius + 1, column - radius : column + radius + 1].max() < 1e-6  # rounding
    beyond = radius + 1
    assert min(difference[row, [column - beyond, column + beyond]]) > 1e-4
    assert min(difference[[row - beyond, row + beyond], column]) > 1e-4

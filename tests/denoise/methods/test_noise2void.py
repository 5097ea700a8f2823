"""Noise2Void, N2V2's replacement and structN2V."""

import pytest
import torch
from torch import nn

from denoise.errors import UserError
from denoise.methods import build_method, observe
from denoise.methods.noise2void import hide_structure
from denoise.noise import parse_noise
from denoise.rng import batch_rng

NOISE = parse_noise("gauss25")
CLEAN = torch.linspace(0, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)


def n2v(**fields):
    return build_method("n2v", fields, NOISE)


def batch_of(method, clean=CLEAN, step=0):
    rng = batch_rng(0, step, torch.arange(len(clean)))
    views = observe(clean, NOISE, method.needs, rng)
    return views, method.make_batch(views, rng.stream("method"))


@pytest.mark.parametrize("replacement", ["uniform_with_centre", "uniform", "median"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_target_is_the_noisy_image_itself_and_only_hidden_pixels_of_the_input_differ(replacement, per_channel):
    views, batch = batch_of(n2v(replacement=replacement, per_channel=per_channel, mask_ratio=0.02))
    hidden = batch["mask"].expand_as(CLEAN).bool()
    changed = batch["input"] != batch["target"]
    assert torch.equal(batch["target"], views["noisy"])
    assert not (changed & ~hidden).any()
    assert (changed & hidden).sum() >= (0.5 if replacement == "uniform_with_centre" else 1) * hidden.sum() * 0.9
    assert hidden.float().mean() == pytest.approx(1 / 49, rel=0.15)


def test_by_default_a_crop_of_64_hides_8_or_9_pixels_a_channel():
    _, batch = batch_of(n2v(), CLEAN[:1].expand(50, -1, -1, -1))
    counts = batch["mask"].sum((2, 3))
    assert counts.min() >= 4
    assert counts.mean() == pytest.approx(64 * 64 / 22**2, abs=0.3)


def test_channels_hide_pixels_of_their_own_by_default():
    _, own = batch_of(n2v())
    _, shared = batch_of(n2v(per_channel=False))
    assert not torch.equal(own["mask"][:, 0], own["mask"][:, 1])
    assert shared["mask"].shape[1] == 1


def test_the_loss_is_the_mean_over_the_hidden_pixels():
    method = n2v(mask_ratio=0.02)
    _, batch = batch_of(method)
    net = nn.Identity()
    squared = (batch["input"] - batch["target"]).square()
    expected = torch.stack([squared[i][batch["mask"][i].bool()].mean() for i in range(2)]).mean()
    assert torch.isclose(method.loss(net, batch, 0)["loss"], expected)


def test_only_hidden_pixels_have_a_gradient():
    method = n2v(mask_ratio=0.02)
    _, batch = batch_of(method)
    output = batch["target"] + 1
    output.requires_grad_()
    method.loss(lambda _: output, batch, 0)["loss"].backward()
    assert torch.equal(output.grad != 0, batch["mask"].bool())


def test_pixels_that_are_known_to_be_lost_do_not_count():
    lost = torch.zeros(2, 1, 64, 64)
    lost[..., 32:] = 1
    method = n2v(mask_ratio=0.02)
    batch = method.make_batch({"noisy": CLEAN, "mask": lost}, batch_rng(0, 0, torch.arange(2)))
    assert not batch["mask"][..., :32].any()
    assert batch["mask"][..., 32:].any()


def test_the_expected_loss_of_the_true_image_is_the_variance_of_the_noise():
    clean = torch.full((64, 3, 64, 64), 0.5)
    method = n2v(mask_ratio=0.0625)
    _, batch = batch_of(method, clean)
    loss = method.loss(lambda _: clean, batch, 0)["loss"]
    variance, counted = (25 / 255) ** 2, batch["mask"].sum()
    assert abs(loss - variance) < 5 * variance * (2 / counted) ** 0.5


@pytest.mark.parametrize(
    ("structure", "offsets"),
    [
        ("h", {(0, c) for c in (-2, -1, 1, 2)}),
        ("v", {(r, 0) for r in (-2, -1, 1, 2)}),
        ("cross", {(0, c) for c in (-2, -1, 1, 2)} | {(r, 0) for r in (-2, -1, 1, 2)}),
        ("square", {(r, c) for r in range(-2, 3) for c in range(-2, 3)} - {(0, 0)}),
    ],
)
@pytest.mark.parametrize(("row", "column"), [(8, 6), (0, 1)])
def test_a_structure_hides_its_pixels_around_the_centre_and_leaves_the_centre(structure, offsets, row, column):
    image = torch.linspace(-1, 2, 16 * 16).view(1, 1, 16, 16)
    mask = torch.zeros(1, 1, 16, 16)
    mask[0, 0, row, column] = 1
    hidden = hide_structure(image, mask, structure, 5, batch_rng(0, 0, torch.arange(1)))
    actual = {(r - row, c - column) for _, _, r, c in (hidden != image).nonzero().tolist()}
    assert actual == {(r, c) for r, c in offsets if 0 <= row + r and 0 <= column + c}


def test_a_structure_is_filled_uniformly_between_the_least_and_greatest_value_of_the_sample():
    image = torch.rand(50, 1, 40, 40) * torch.arange(1, 51).view(-1, 1, 1, 1)
    mask = torch.zeros_like(image)
    mask[..., 4::8, 4::8] = 1
    hidden = hide_structure(image, mask, "square", 5, batch_rng(0, 0, torch.arange(50)))
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    share = ((hidden - low) / (high - low))[hidden != image].double()
    assert 0 <= share.min()
    assert share.max() <= 1
    assert abs(share.mean() - 0.5) < 5 / (12 * len(share)) ** 0.5
    assert abs(share.var() - 1 / 12) < 5 / (180 * len(share)) ** 0.5


def test_a_structure_does_not_widen_the_mask():
    _, plain = batch_of(n2v())
    _, struct = batch_of(n2v(structure="cross", structure_size=9))
    assert torch.equal(plain["mask"], struct["mask"])
    assert (struct["input"] != struct["target"]).sum() > 5 * (plain["input"] != plain["target"]).sum()


def test_two_structures_may_meet_and_then_hide_each_others_centre():
    image = torch.linspace(0, 1, 8 * 8).view(1, 1, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 3, [2, 4]] = 1
    hidden = hide_structure(image, mask, "h", 5, batch_rng(0, 0, torch.arange(1)))
    assert (hidden != image)[0, 0, 3, :7].all()


def test_an_even_structure_is_reported():
    with pytest.raises(UserError, match="structure_size is 10, expected an odd number"):
        n2v(structure="h", structure_size=10)

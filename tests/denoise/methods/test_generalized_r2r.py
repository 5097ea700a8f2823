import pytest
import torch
from torch import nn

from denoise.errors import UserError
from denoise.methods import build_method, observe
from denoise.methods.generalized_r2r import GeneralizedR2R
from denoise.noise import parse_noise
from denoise.rng import batch_rng

PEAK = parse_noise("poisson30")


def keys(step=0, size=1):
    return batch_rng(0, step, torch.arange(size))


def pair_of(shade, step, noise=PEAK, size=(1, 1, 500, 500)):
    clean = torch.full(size, shade)
    views = observe(clean, noise, GeneralizedR2R.needs, keys(step, size[0]))
    batch = build_method("gr2r", {}, noise).make_batch(views, keys(step, size[0]).stream("method"))
    return batch["input"], batch["target"]


def within_standard_errors(values, expected, errors=4):
    values = values.double().flatten()
    return abs(values.mean() - expected) < errors * values.std() / values.numel() ** 0.5


@pytest.mark.parametrize("shade", [0.03, 0.3, 1.0])
def test_the_two_images_are_independent_and_have_the_clean_image_as_their_mean(shade):
    pairs = [pair_of(shade, step) for step in range(4)]  # 1e6 draws
    larger, smaller = (torch.cat(images).double() for images in zip(*pairs, strict=True))
    assert within_standard_errors(larger, shade)
    assert within_standard_errors(smaller, shade)
    first, second = larger - shade, smaller - shade
    assert within_standard_errors(first * second, 0)
    assert within_standard_errors(
        (first.square() - first.square().mean()) * (second.square() - second.square().mean()), 0
    )


def test_no_photon_is_lost_and_none_is_made():
    noisy = PEAK.corrupt(torch.rand(2, 3, 20, 20), keys(0, 2)).noisy
    method = build_method("gr2r", {"ratio": 0.3}, PEAK)
    sample = {"noisy": noisy, "level": torch.full((2, 1, 1, 1), 30.0)}
    batch = method.make_batch(sample, keys(0, 2))
    assert torch.allclose(0.7 * batch["input"] + 0.3 * batch["target"], noisy, atol=1e-5)


def test_the_expected_loss_is_the_supervised_loss_plus_a_constant():
    """E |f(y1) - y2|^2 = E |f(y1) - x|^2 + E |y2 - x|^2, the last being x / (peak a): r2r's Gaussian pair misses it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 1, 3, padding=1))
    clean, method = torch.rand(8, 1, 32, 32), build_method("gr2r", {}, PEAK)
    differences = []
    with torch.no_grad():
        for step in range(100):
            views = observe(clean, PEAK, GeneralizedR2R.needs, keys(step, 8))
            batch = method.make_batch(views, keys(step, 8).stream("method"))
            supervised = (net(batch["input"]) - clean).square().mean()
            differences.append(method.loss(net, batch, 0.0)["loss"] - supervised)
    actual = torch.stack(differences)
    assert abs(actual.mean() - clean.mean() / (30 * 0.15)) < 5 * actual.std() / len(actual) ** 0.5


def test_real_images_are_counted_by_their_gain():
    method = build_method("gr2r", {"gain": 1 / 255, "ratio": 0.5}, parse_noise("none"))
    assert not method.needs_level()
    assert method.views() == ("noisy",)
    noisy = torch.tensor([-0.1, 0.0, 3.4 / 255, 1.0]).view(1, 1, 1, 4)
    batch = method.make_batch({"noisy": noisy}, keys())
    photons = (batch["input"] + batch["target"]) / 2 * 255
    assert photons.flatten().tolist() == pytest.approx([0, 0, 3, 255], abs=1e-4)


def test_an_image_is_restored_from_the_photons_that_training_takes_for_its_input():
    method = build_method("gr2r", {}, PEAK)
    noisy, level = PEAK.corrupt(torch.full((1, 1, 200, 200), 0.5), keys()).noisy, torch.full((1, 1, 1, 1), 30.0)
    first, second = (method.predict(nn.Identity(), noisy, level, keys().stream(name)) for name in ("0", "1"))
    assert not torch.equal(first, second)
    assert within_standard_errors(first - noisy, 0)
    assert method.test_time_passes() == 5
    with pytest.raises(UserError, match="gr2r needs the noise level"):
        method.predict(nn.Identity(), noisy, None, keys())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "what one photon adds .* give method.gain"),
        ({"gain": 1e-6}, "makes 1000000 photons of white, expected at most 65535"),
        ({"gain": 0}, "invalid value 0 for method.gain"),
        ({"gain": 0.01, "ratio": 1}, "invalid value 1 for method.ratio"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        build_method("gr2r", fields, parse_noise("none"))

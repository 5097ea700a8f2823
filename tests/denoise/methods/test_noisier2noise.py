import pytest
import torch
from torch import nn

from denoise.errors import UserError
from denoise.methods.noisier2noise import Noisier2Noise
from denoise.rng import batch_rng

TAU, SIGMA = 0.3, 0.1  # deviations of a clean image that is Gaussian noise itself, and of its noise
ALPHAS = pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])


class Scale(nn.Module):
    """Multiplies: the best denoiser of Gaussian pixels is of this kind (Wiener)."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, noisy):
        return self.factor * noisy


def gaussian_toy(step=0):
    rng = batch_rng(0, step, torch.arange(8))
    clean = TAU * rng.stream("clean").normal(3, 64, 64)
    noisy = clean + SIGMA * rng.stream("noise").normal(3, 64, 64)
    return clean, {"noisy": noisy, "level": torch.full((8, 1, 1, 1), SIGMA)}, rng.stream("method")


def variances(alpha):
    """Of y, and of z, when the clean image has mean 0."""
    return TAU**2 + SIGMA**2, TAU**2 + (1 + alpha**2) * SIGMA**2


@ALPHAS
def test_the_correction_of_the_ideal_net_is_the_expected_clean_image(alpha):
    _, sample, rng = gaussian_toy()
    method = Noisier2Noise(alpha)
    y, z = variances(alpha)
    restored = method.predict(Scale(y / z), sample["noisy"], sample["level"], rng)
    noisier = method.make_batch(sample, rng)["input"]  # the same keys, so the same z
    assert torch.allclose(restored, TAU**2 / z * noisier, atol=1e-5)


@ALPHAS
def test_what_the_loss_learns_is_the_expected_noisy_image(alpha):
    """The factor of least squares is Var y / Var z; its standard error is sqrt(residual variance / sum z^2)."""
    _, sample, rng = gaussian_toy()
    batch = Noisier2Noise(alpha).make_batch(sample, rng)
    total = batch["input"].square().sum()
    factor = (batch["input"] * batch["target"]).sum() / total
    y, z = variances(alpha)
    assert abs(factor - y / z) < 5 * ((y - y**2 / z) / total) ** 0.5
    loss = [Noisier2Noise(alpha).loss(Scale(factor + shift), batch, 0.0)["loss"] for shift in (-0.01, 0, 0.01)]
    assert loss[1] < min(loss[0], loss[2])


@ALPHAS
def test_restoring_beats_the_noisy_image_where_theory_says_so(alpha):
    """The error is that of the best estimate from z: tau^2 s / (tau^2 + s) with s = (1 + alpha^2) sigma^2."""
    clean, sample, rng = gaussian_toy()
    y, z = variances(alpha)
    restored = Noisier2Noise(alpha).predict(Scale(y / z), sample["noisy"], sample["level"], rng)
    errors = (restored - clean).square()
    expected = TAU**2 * (z - TAU**2) / z
    assert abs(errors.mean() - expected) < 5 * errors.std() / errors.numel() ** 0.5


@ALPHAS
def test_the_added_noise_has_alpha_times_sigma_and_is_fresh(alpha):
    _, sample, rng = gaussian_toy()
    method = Noisier2Noise(alpha)
    batch = method.make_batch(sample, rng)
    added = batch["input"] - sample["noisy"]
    assert added.std().item() == pytest.approx(alpha * SIGMA, rel=5 / (2 * added.numel()) ** 0.5)
    other = method.make_batch(sample, rng.stream("next"))["input"] - sample["noisy"]
    limit = 5 / (added.numel() / 3) ** 0.5
    for a, b in [(added, other), (added[:, 0], added[:, 1]), (added, sample["noisy"])]:
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < limit
    assert torch.equal(batch["target"], sample["noisy"])
    assert (batch["input"] != batch["target"]).float().mean() > 0.999


def test_one_pass_with_alpha_one_is_the_default_and_the_level_is_needed():
    method = Noisier2Noise()
    assert (method.alpha, method.test_time_passes(), Noisier2Noise(passes=9).test_time_passes()) == (1.0, 1, 9)
    assert method.needs_level()
    _, sample, rng = gaussian_toy()
    with pytest.raises(UserError, match="noisier2noise needs the noise level"):
        method.predict(nn.Identity(), sample["noisy"], None, rng)

"""The mean PSNR of a set, with its intervals."""

import math

import pytest
import torch

from denoise.quality import ErrorEstimate, mean_psnr


def test_the_mean_and_its_intervals() -> None:
    images = [ErrorEstimate(mse, 0.05 * mse, 0.01) for mse in (0.001, 0.002)]
    found = mean_psnr(images)
    psnrs = [30.0, 10 * math.log10(500)]
    assert found.psnr == pytest.approx(sum(psnrs) / 2)
    assert (found.images, found.unresolved) == (2, 0)
    half = 1.6449 * 10 / math.log(10) * 0.05 / math.sqrt(2)
    assert found.interval == pytest.approx((found.psnr - half, found.psnr + half), abs=1e-3)
    assert found.interval_alike is not None
    assert found.interval_alike[0] == pytest.approx(found.psnr - 6.3138 * abs(psnrs[0] - psnrs[1]) / 2, abs=1e-3)


def test_what_the_variance_of_the_noise_is_not_sure_of_widens_both() -> None:
    images = [ErrorEstimate(0.001, 0.0, 0.009)] * 10
    found = mean_psnr(images, variance_uncertainty=0.01)
    half = 1.6449 * 10 / math.log(10) * 0.01 * 8  # the variance is 8 times the error
    assert found.interval is not None
    assert found.interval_alike is not None
    assert found.interval[1] - found.psnr == pytest.approx(half, abs=1e-3)
    assert found.interval_alike[1] - found.psnr > half


def test_errors_that_noise_hides_are_left_out_and_counted() -> None:
    found = mean_psnr([ErrorEstimate(0.001, 1e-4, 0.01), ErrorEstimate(-1e-5, 1e-4, 0.01)])
    assert (found.psnr, found.unresolved, found.interval_alike) == (pytest.approx(30.0), 1, None)
    assert mean_psnr([ErrorEstimate(-1e-5, 1e-4, 0.01)]).psnr is None


def test_the_standard_error_of_white_values_is_theirs_and_a_slope_adds_little() -> None:
    torch.manual_seed(0)
    white = torch.randn(1, 240, 240, dtype=torch.float64)
    slope = torch.linspace(0, 2, 240, dtype=torch.float64)[None, None]
    for values in (white, white + slope):
        assert ErrorEstimate.of(values, values).standard_error == pytest.approx(1 / 240, rel=0.15)
    assert ErrorEstimate.of(white[:, :4, :4], white[:, :4, :4]).standard_error == math.inf

"""Stein's unbiased risk estimate: the error of restored images from one noisy image and the covariance of its noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from denoise.quality.intervals import ErrorEstimate
from denoise.quality.local_noise import LocalNoise
from denoise.rng import Rng

STEP = 0.03  # of the difference, in standard deviations of the noise; for the thresholds of BM3D 0.3 is too much


def sure(
    restore: Callable[[Tensor], Tensor],
    noisy: Tensor,
    restored: Tensor,
    noise: LocalNoise,
    rng: Rng,
    *,
    probes: int = 1,
    step: float = STEP,
) -> ErrorEstimate:
    """Return the mean squared error of a restored image, estimated without the clean one.

        MSE = mean (f(y) - y)^2 - mean S_ii + 2/N trace(S J)
        trace(S J) = E b . (f(y + step b) - f(y)) / step,    b normal of covariance S

    with the noisy image y of N values, its noise of covariance S, and J the Jacobian of f at y. It is unbiased for
    Gaussian noise of known covariance (Stein 1981; the covariance S as in Eldar 2009); the trace is taken with probes
    b (Ramani, Blu and Unser 2008). The variance of other noise may depend on the brightness: it is taken where the
    brightness is that of the restored image.

    Args:
        restore: f, from (C, H, W) to the same shape in float32, with fixed randomness where the method has any.
        noisy: y.
        restored: f(y), as ``restore`` returns it.
        noise: the covariance S.
        rng: of the probes, one key.
        probes: how many are averaged; each costs one call of ``restore``.
        step: large against the rounding of float32, small enough that f is nearly linear over it.
    """
    variance = noise.variance(restored)
    trace = torch.zeros_like(noisy, dtype=torch.float64)
    for number in range(probes):
        probe = noise.draw(restored, rng.stream(f"probe {number}"))
        moved = restore(noisy + step * probe)
        trace += probe.double() * (moved - restored).double() / (step * probes)
    fidelity = (restored - noisy).double().square()
    return ErrorEstimate.of(fidelity, fidelity - variance.double() + 2 * trace)

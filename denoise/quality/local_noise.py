"""The covariance of an image's noise: its variance by brightness, and its correlation by lag and between channels."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoise.errors import UserError
from denoise.noise import Noise
from denoise.noise.correlated import REACH as FILTER_REACH
from denoise.noise_meter import REACH, NoiseMeasurement
from denoise.noise_meter.blocks import SIDE, SURFACE, surface
from denoise.rng import Rng

FAMILIES = ("gauss", "corr", "poisson")  # of noise that adds nothing on average and whose covariance is known
LEAST = 0.02  # of a correlation; smaller ones are found where there is none
ROUNDS = 6  # until what a surface takes of the noise is known to 1e-3


@dataclass(frozen=True)
class LocalNoise:
    """Noise of zero mean, S = D^1/2 R D^1/2: D the variance, linear in brightness, R the correlation."""

    slope: float  # variance = slope * brightness + offset, of values in [0, 1]
    offset: float
    correlation: Tensor | None = None  # (K + 1, 2 K + 1): by dy from 0 and dx from -K; None: of white noise
    channels: Tensor | None = None  # (C, C): correlation between channels; None: independent
    uncertainty: float = 0.0  # standard error of the variance, relative

    def variance(self, brightness: Tensor) -> Tensor:
        """Return the variance of the noise of an image (C, H, W) with this brightness in [0, 1], at least 0."""
        return (self.slope * brightness.clamp(0, 1) + self.offset).clamp_min(0)

    def draw(self, brightness: Tensor, rng: Rng) -> Tensor:
        """Return a normal image (C, H, W) with the covariance of the noise there."""
        white = rng.normal(*brightness.shape)[0]
        if self.channels is not None:
            white = torch.einsum("ij,jhw->ihw", _root(self.channels).to(white), white)
        if self.correlation is not None:
            white = _filtered(white, self.correlation)
        return white * self.variance(brightness).sqrt()

    @property
    def neighbours(self) -> float:
        """The larger correlation of two values that lie beside or below each other."""
        lags = self.correlation_map(1)
        return max(lags[1, 2].item(), lags[2, 1].item())

    def correlation_map(self, reach: int) -> Tensor:
        """Return the correlation by lag up to ``reach``, (2 reach + 1) squared, lag (0, 0) in the middle."""
        lags = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
        lags[reach, reach] = 1.0
        if self.correlation is None:
            return lags
        own = self.correlation.shape[0] - 1
        for dy in range(-min(own, reach), min(own, reach) + 1):
            for dx in range(-min(own, reach), min(own, reach) + 1):
                down, right = (dy, dx) if dy >= 0 else (-dy, -dx)
                lags[reach + dy, reach + dx] = self.correlation[down, right + own]
        return lags


def known_noise(noise: Noise, level: float) -> LocalNoise:
    """Return the covariance of synthetic noise of a level, in the noise's own unit.

    Raises:
        UserError: its mean is not zero, or its covariance is not known.
    """
    if noise.family not in FAMILIES:
        raise UserError(
            f"the error under {noise.name} cannot be estimated without clean images: the estimate is defined for noise "
            f"of zero mean and known covariance; use one of the families {', '.join(FAMILIES)}, or none for real noise."
        )
    if noise.family == "poisson":
        return LocalNoise(1 / level, 0.0)
    return LocalNoise(0.0, level**2, _of_filter(noise.high) if noise.family == "corr" else None)


def measured_noise(measurement: NoiseMeasurement) -> LocalNoise:
    """Return the covariance of measured noise, with what the meter's surfaces have taken of it put back.

    The meter subtracts a quadratic surface from blocks, and allows for the share that this takes of white noise, a
    hundredth. Of correlated noise it takes more: 8 % at a width of 0.8 pixels.
    """
    correlation, factor = before_surfaces(measurement.correlation)
    channels = measurement.channels.float() if len(measurement.channels) > 1 else None
    slope, offset = measurement.slope * factor, measurement.offset * factor
    return LocalNoise(slope, offset, correlation, channels, _uncertainty(measurement))


def before_surfaces(measured: Tensor) -> tuple[Tensor, float]:
    """Return the correlation before surfaces were subtracted, and the variance there over the measured one.

    A block's noise with covariance T keeps Q T Q, Q = I - U U^T for the surfaces U. T is found by repetition: what the
    present T loses is added to what was measured.
    """
    basis = surface()
    kept = measured.double() * (1 - SURFACE / SIDE**2)  # as measured, over the variance that the meter states
    whole = kept.clone()
    for _ in range(ROUNDS):
        full = _toeplitz(whole)
        inside = full - basis @ (basis.T @ full)
        inside = inside - (inside @ basis) @ basis.T
        whole = kept + _by_lag(full) - _by_lag(inside)
    variance = whole[0, REACH].item()
    correlation = whole / variance
    return torch.where(correlation.abs() > LEAST, correlation, 0.0), variance


def _uncertainty(measurement: NoiseMeasurement) -> float:
    """Return the relative standard error of the variance, by how far its values lie from the line through them."""
    line = measurement.slope * measurement.brightness + measurement.offset
    errors = measurement.variance / line.clamp_min(1e-30) - 1
    free = max(1, len(errors) - 2)
    values = measurement.blocks * (SIDE**2 - SURFACE)
    return math.sqrt(errors.square().sum().item() / free / len(errors) + 2 / values)


def _of_filter(width: float) -> Tensor:
    """Return the correlation of white noise that a Gaussian filter of a width in pixels has blurred."""
    reach = math.ceil(FILTER_REACH * width)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64).square()) / (2 * width**2))
    lags = torch.tensor(
        [(weights[: len(weights) - lag] * weights[lag:]).sum() for lag in range(2 * reach + 1)], dtype=torch.float64
    )
    lags /= lags[0].clone()
    return lags[:, None] * torch.cat([lags.flip(0)[:-1], lags])[None]


def _filtered(white: Tensor, correlation: Tensor) -> Tensor:
    """Return white noise (C, H, W) filtered so that it has a correlation, as if the image went on at its other side."""
    height, width = white.shape[-2:]
    power = torch.fft.rfft2(_periodic(correlation, height, width)).real.clamp_min(0)
    share = torch.fft.irfft2(power, s=(height, width))[0, 0]  # of the variance, where parts below zero were cut off
    filtered: Tensor = torch.fft.irfft2(
        torch.fft.rfft2(white.double()) * (power / share).sqrt().to(white.device), s=(height, width)
    )
    return filtered.to(white.dtype)


def _periodic(correlation: Tensor, height: int, width: int) -> Tensor:
    """Return the correlation as a periodic image (H, W), lag (0, 0) in its corner."""
    reach = min(correlation.shape[0] - 1, (min(height, width) - 1) // 2)
    lags = LocalNoise(0.0, 1.0, correlation).correlation_map(reach)
    field = torch.zeros(height, width, dtype=torch.float64)
    field[: 2 * reach + 1, : 2 * reach + 1] = lags
    return field.roll((-reach, -reach), (0, 1))


def _root(matrix: Tensor) -> Tensor:
    """Return the symmetric root of a correlation matrix; what is negative of it counts as zero."""
    values, vectors = torch.linalg.eigh(matrix.double())
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root


def _toeplitz(covariance: Tensor) -> Tensor:
    """Return the covariance of all values of a block, (SIDE^2, SIDE^2); 0 beyond the largest lag."""
    down, right, inside = _lags()
    return torch.where(inside, covariance[down.clamp(0, REACH), right.clamp(0, 2 * REACH)], 0.0)


def _by_lag(matrix: Tensor) -> Tensor:
    """Return the means of a block's covariance matrix by lag, (REACH + 1, 2 REACH + 1)."""
    down, right, inside = _lags()
    number = (down * (2 * REACH + 1) + right)[inside]
    size = (REACH + 1) * (2 * REACH + 1)
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, number, matrix[inside])
    counts = torch.zeros(size, dtype=torch.float64).index_add_(0, number, torch.ones_like(matrix[inside]))
    return (sums / counts.clamp_min(1)).view(REACH + 1, 2 * REACH + 1)


def _lags() -> tuple[Tensor, ...]:
    """Return the lags of all pairs of values of a block as rows and columns of a table, and which are in it."""
    axis: Any = torch.arange(SIDE)
    y, x = (part.flatten() for part in torch.meshgrid(axis, axis, indexing="ij"))
    dy, dx = y[None] - y[:, None], x[None] - x[:, None]
    sign = torch.where(dy < 0, -1, 1)
    down, right = dy * sign, dx * sign + REACH
    return down, right, (down <= REACH) & (right >= 0) & (right <= 2 * REACH)

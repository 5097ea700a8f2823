"""Poisson noise: the counts of a photon detector."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from denoise.noise.alias_table import AliasTable, uniform53
from denoise.noise.base import Noise, Observation
from denoise.rng import Rng

# A rate is 64 a + b + f: one table for the rates 64 a, one for b, and inversion for the fraction f. Counts beyond a
# table have a probability below 1e-50, counts beyond TERMS one below 2^-53.
WHOLE, WHOLE_COUNTS = 64, 256
COARSE, COARSE_COUNTS = 17, 2048
TERMS = 18


@dataclass(frozen=True)
class Poisson(Noise):
    """Counts photons: y = Poisson(peak x) / peak, of variance x / peak; ``poisson30`` has peak 30.

    The level is the peak, the mean count at white; Lehtinen et al. 2018 (section 3.2) train with U(0.001, 50). Values
    outside [0, 1] count as black or white.
    """

    family: ClassVar[str] = "poisson"
    limits: ClassVar[tuple[float, float]] = (0.001, 1000)
    example: ClassVar[str] = "poisson30 (photons at white) or poisson0.001_50 (a range)"

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return Poisson(peak image) / peak."""
        peak = self.draw_level(rng)
        counts = poisson(image.clamp(0, 1) * peak, self.high, rng.stream("noise"))
        return Observation(counts.to(image.dtype) / peak, peak)


def poisson(rate: Tensor, max_rate: float, rng: Rng) -> Tensor:
    """Return independent Poisson counts, float64, of ``rate`` (B, ...) from 0 to ``max_rate`` (1000 or less).

    Rates of independent counts add up, so the sum is exact; the tables are exact to 1e-13, uniforms have 53 bits.
    """
    whole = rate.to(torch.int64)
    counts = _invert((rate - whole).double(), rng.stream("fraction"))
    if max_rate > WHOLE - 1:
        counts += _table(WHOLE, COARSE, COARSE_COUNTS, rate.device).draw(whole // WHOLE, rng.stream("coarse"))
        whole %= WHOLE
    if max_rate >= 1:
        counts += _table(1, WHOLE, WHOLE_COUNTS, rate.device).draw(whole, rng.stream("whole"))
    return counts.view_as(rate)


def _invert(rate: Tensor, rng: Rng) -> Tensor:
    """Return counts, flat, of rates in [0, 1) by inversion: the number of terms that fit below a uniform number."""
    rest, term, rate = uniform53(rng.bits(rate[0].numel())).flatten(), torch.exp(-rate).flatten(), rate.flatten()
    first = rest >= term
    # Most rates are small: few pixels need a second term. A GPU would have to be waited for to know which.
    some = first.nonzero()[:, 0] if rate.device.type == "cpu" else slice(None)
    rest, term, rates, some_counts = rest[some], term[some], rate[some], first[some].double()
    for count in range(1, TERMS):
        rest -= term
        term *= rates / count
        some_counts += rest >= term  # once the rest is below the term it stays below
    counts = torch.zeros_like(rate)
    counts[some] = some_counts
    return counts


@lru_cache(maxsize=4)
def _table(step: int, rows: int, counts: int, device: torch.device) -> AliasTable:
    """Return the table of the Poisson distributions of rates 0, step .. step (rows - 1)."""
    rate = torch.arange(rows, dtype=torch.float64)[:, None] * step
    count = torch.arange(counts, dtype=torch.float64)
    logarithm = torch.special.xlogy(count, rate) - rate - torch.lgamma(count + 1)
    return AliasTable.build(logarithm.exp(), device)

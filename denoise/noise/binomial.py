"""Binomial counts: how many of so many photons fall into a share drawn at random."""

from functools import lru_cache

import torch
from torch import Tensor

from denoise.noise.alias_table import AliasTable
from denoise.rng import Rng

BASE = 64  # of the digits that a count is split into
LARGEST_COUNT = BASE * BASE * 16 - 1  # count that is drawn from


def binomial(counts: Tensor, share: float, largest: int, rng: Rng) -> Tensor:
    """Return independent Binomial(count, share) draws, float64, of counts (B, ...) from 0 to ``largest``.

    A count is the sum of its digits times 1, 64 and 4096, and the draws of the parts add up, so the sum is exact; the
    tables are exact to 1e-10. ``largest`` is at most ``LARGEST_COUNT``.
    """
    rest, draws = counts.to(torch.int64), torch.zeros(counts.numel(), dtype=torch.float64, device=counts.device)
    for step, name in ((1, "ones"), (BASE, "sixties"), (BASE * BASE, "thousands")):
        if step <= largest:
            rows = min(BASE, (LARGEST_COUNT + 1) // step)
            table = _table(step, rows, share, counts.device)
            draws += table.draw(rest // step % rows, rng.stream(name))
    return draws.view_as(counts)


@lru_cache(maxsize=6)
def _table(step: int, rows: int, share: float, device: torch.device) -> AliasTable:
    """Return the table of the binomial distributions of 0, step .. step (rows - 1) trials."""
    trials = torch.arange(rows, dtype=torch.float64)[:, None] * step
    hits = torch.arange(rows * step, dtype=torch.float64)
    chance = torch.tensor(share, dtype=torch.float64)
    misses = (trials - hits).clamp_min(0)
    ways = torch.lgamma(trials + 1) - torch.lgamma(hits + 1) - torch.lgamma(misses + 1)
    logarithm = ways + hits * chance.log() + misses * torch.log1p(-chance)
    return AliasTable.build(torch.where(hits <= trials, logarithm.exp(), 0), device)

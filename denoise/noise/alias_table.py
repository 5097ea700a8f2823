"""Walker's alias method: exact draws from many discrete distributions, one bit pattern and two look-ups a draw."""

from dataclasses import dataclass

import torch
from torch import Tensor

from denoise.rng import Rng


@dataclass(frozen=True, eq=False)
class AliasTable:
    """Distributions on 0 .. columns - 1, one in each row (Walker 1977).

    Attributes:
        keep: the probability to keep a column that was drawn uniformly, flat float64.
        alias: the column to take instead, flat int64.
        columns: a power of two.
    """

    keep: Tensor
    alias: Tensor
    columns: int

    @classmethod
    def build(cls, probabilities: Tensor, device: torch.device) -> "AliasTable":
        """Return the table of distributions (rows, columns), float64, each of sum 1 up to rounding."""
        columns = probabilities.shape[1]
        tables = [_alias(row) for row in probabilities.mul(columns).tolist()]
        keep = torch.tensor([value for table in tables for value in table[0]], dtype=torch.float64, device=device)
        alias = torch.tensor([value for table in tables for value in table[1]], dtype=torch.int64, device=device)
        return cls(keep, alias, columns)

    def draw(self, row: Tensor, rng: Rng) -> Tensor:
        """Return a column, flat float64, for each row number in ``row`` (B, ...), drawn from that row."""
        bits = rng.bits(row[0].numel())
        column = bits & (self.columns - 1)  # up to 2048 columns it shares no bit with the uniform number
        entry = (row.flatten(1) * self.columns + column).flatten()
        stay = uniform53(bits).flatten() < self.keep.index_select(0, entry)
        return torch.where(stay, column.flatten(), self.alias.index_select(0, entry)).double()


def uniform53(bits: Tensor) -> Tensor:
    """Return float64 uniform in [0, 1), of the upper 53 of 64 bits."""
    return ((bits >> 11) & ((1 << 53) - 1)).double().mul_(2.0**-53)


def _alias(shares: list[float]) -> tuple[list[float], list[int]]:
    """Fill every column that holds less than 1 from one that holds more (Vose 1991)."""
    alias = list(range(len(shares)))
    small = [column for column in alias if shares[column] < 1]
    large = [column for column in alias if shares[column] >= 1]
    shares = shares.copy()
    while small and large:
        column = small.pop()
        alias[column] = large[-1]
        shares[large[-1]] -= 1 - shares[column]
        if shares[large[-1]] < 1:
            small.append(large.pop())
    return [1.0 if alias[column] == column else share for column, share in enumerate(shares)], alias

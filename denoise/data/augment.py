"""Flips and quarter turns, to augment training and to average over at test time."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Symmetry:
    """One of the eight symmetries of the square: a transposition, then flips."""

    transpose: bool = False
    vertical: bool = False  # upside down
    horizontal: bool = False

    def apply(self, batch: Tensor) -> Tensor:
        """Return (..., H, W) transformed; a transposition exchanges H and W."""
        if self.transpose:
            batch = batch.transpose(-1, -2)
        dims = [dim for dim, flipped in ((-2, self.vertical), (-1, self.horizontal)) if flipped]
        return batch.flip(dims) if dims else batch

    def undo(self, batch: Tensor) -> Tensor:
        """Return the inverse transform of ``batch`` (..., H, W)."""
        dims = [dim for dim, flipped in ((-2, self.vertical), (-1, self.horizontal)) if flipped]
        if dims:
            batch = batch.flip(dims)
        return batch.transpose(-1, -2) if self.transpose else batch


def symmetry_group(kinds: Iterable[str]) -> list[Symmetry]:
    """Return the symmetries that "flip" (left-right), "rotate" (quarter turns) or both generate, the identity first."""
    names = set(kinds)
    if names == {"flip"}:
        return [Symmetry(), Symmetry(horizontal=True)]
    if names == {"rotate"}:
        return [Symmetry(), Symmetry(True, True), Symmetry(False, True, True), Symmetry(True, False, True)]
    if not names:
        return [Symmetry()]
    return [Symmetry(t, v, h) for t in (False, True) for v in (False, True) for h in (False, True)]

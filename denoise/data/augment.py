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
    """Return the group that "flip" (left-right), "flip_vertical" (up-down), "rotate" (quarter turns) generate.

    The identity comes first. A member drawn uniformly is what independent flips, each with probability 1/2, and a
    quarter turn drawn uniformly come to.
    """
    names = set(kinds)
    if names == {"rotate"}:
        return [Symmetry(), Symmetry(True, True), Symmetry(False, True, True), Symmetry(True, False, True)]
    no, either = (False,), (False, True)
    transpose = either if "rotate" in names else no
    vertical = either if "rotate" in names or "flip_vertical" in names else no
    horizontal = either if "rotate" in names or "flip" in names else no
    return [Symmetry(t, v, h) for t in transpose for v in vertical for h in horizontal]

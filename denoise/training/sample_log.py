"""Which samples were learnt from: their ids by step, and one digest of all of them."""

import numpy as np

from denoise import distributed
from denoise.data.sampler import Integers, hashed


class SampleLog:
    """Notes the samples of each step.

    The digest is the sum, modulo 2^64, of a hash of (step, position in the global batch, sample): ranks add up to the
    same sum however they share a batch, and a resumed run goes on adding.
    """

    def __init__(self, digest: str = "") -> None:
        self._before = int(digest, 16) if digest else 0  # of all ranks
        self._ours = 0  # of this rank, since then
        self._steps: dict[int, Integers] = {}

    def add(self, step: int, positions: Integers, samples: Integers) -> None:
        """Note what this rank has read for a step."""
        keys = hashed(np.full(len(samples), step, np.uint64))
        for part in (positions, samples):
            keys = hashed(keys + part.astype(np.uint64))
        self._ours = (self._ours + int(keys.sum(dtype=np.uint64))) % 2**64
        self._steps[step] = samples

    def of(self, step: int) -> list[int]:
        """Return the samples of a step that has not been forgotten."""
        return [int(sample) for sample in self._steps.get(step, ())]

    def forget(self) -> None:
        """Forget the ids, not the digest."""
        self._steps.clear()

    def digest(self) -> str:
        """Return the digest over all ranks, 16 hex digits; every rank must ask."""
        self._before = (self._before + distributed.total_modulo(self._ours)) % 2**64
        self._ours = 0
        return f"{self._before:016x}"

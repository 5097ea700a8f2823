"""A log of the samples that training has read: their ids by step, and one digest of all of them."""

import numpy as np

from denoise import distributed
from denoise.data.sampler import Integers, hashed


class SampleLog:
    """Records the samples of each step.

    The digest is the sum, modulo 2^64, of a hash of (step, position in the global batch, sample): it is the same
    however ranks share a batch, and a resumed run continues the sum.
    """

    def __init__(self, digest: str = "") -> None:
        self._total = int(digest, 16) if digest else 0  # of all ranks, up to the last digest
        self._since = 0  # of this rank, since then
        self._steps: dict[int, Integers] = {}

    def add(self, step: int, positions: Integers, samples: Integers) -> None:
        """Record what this rank has read for a step: the positions in the global batch and their samples, (b,) each."""
        keys = hashed(np.full(len(samples), step, np.uint64))
        for part in (positions, samples):
            keys = hashed(keys + part.astype(np.uint64))
        self._since = (self._since + int(keys.sum(dtype=np.uint64))) % 2**64
        self._steps[step] = samples

    def of(self, step: int) -> list[int]:
        """Return the samples of a step since the last ``forget``, in this rank's order."""
        return [int(sample) for sample in self._steps.get(step, ())]

    def forget(self) -> None:
        """Forget the ids by step, not the digest."""
        self._steps.clear()

    def digest(self) -> str:
        """Return the digest over all ranks, 16 hex digits; every rank must call it."""
        self._total = (self._total + distributed.total_modulo(self._since)) % 2**64
        self._since = 0
        return f"{self._total:016x}"

"""Quarantine: the training samples that are left out because their bytes are damaged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from denoise import distributed
from denoise.data.shards import DamagedError


@dataclass
class Quarantine:
    """Samples that were left out because their bytes are damaged.

    Which sample is read instead follows from the number of the damaged one alone, so every world size trains on the
    same samples.
    """

    limit: int = 0  # how many samples may be left out; 0: the first one ends the run
    reasons: dict[int, str] = field(default_factory=dict)  # sample -> what is wrong with it

    def add(self, sample: int, error: DamagedError) -> None:
        """Leave out a damaged sample.

        Raises:
            DamagedError: there are more than the limit.
        """
        self.reasons[sample] = str(error)
        if len(self.reasons) > self.limit:
            raise error

    def metrics(self) -> dict[str, float]:
        """Return how many samples all ranks together have left out; every rank must call this at the same step.

        Raises:
            DamagedError: there are more than the limit; every rank raises it.
        """
        if not self.limit:
            return {}
        self.reasons = distributed.union(self.reasons)
        if len(self.reasons) > self.limit:
            sample, reason = min(self.reasons.items())
            raise DamagedError(
                f"{len(self.reasons)} samples are damaged, more than the {self.limit} of data.quarantine; "
                f"sample {sample}: {reason}"
            )
        return {"quarantined": float(len(self.reasons))}

    def add_to_card(self, card: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a model card whose provenance names the samples that were left out, and why."""
        if not self.reasons:
            return card
        left_out = [{"sample": sample, "reason": reason} for sample, reason in sorted(self.reasons.items())]
        return {**card, "provenance": {**card["provenance"], "left_out": left_out}}

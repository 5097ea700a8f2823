"""Logging to the journal of a run: what cannot be written there never stops training."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.tracking.journal import Journal
from pipelines.tracking.runs import RunSpec

if TYPE_CHECKING:
    import numpy as np


class JournalLogger:
    """Appends to the journal at once, in the process that logs; subclasses have MLflow get it soon after."""

    def __init__(self, spec: RunSpec, journal: Path) -> None:
        """Write the definition of the run into its journal.

        Raises:
            UserError: the journal cannot be written.
        """
        self._journal = Journal(journal)
        self._spec = self._journal.write_spec(spec)
        self._lost_entries = 0  # that could not be appended to the journal

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step; NaN and infinities are allowed."""
        self._append(lambda: self._journal.append_metrics(step, metrics))

    def log_image(self, key: str, image: "Path | np.ndarray[Any, Any]", step: int) -> None:
        """Log an image: a file, or an array (H, W, C) of uint8 or of floats in [0, 1]."""
        self._append(lambda: self._journal.append_image(key, image, step))

    def _append(self, append: Callable[[], None]) -> None:
        try:
            append()
        except OSError as error:  # training goes on; a checkpoint on the same disk will report the full disk
            if not self._lost_entries:
                print(
                    f"warning: {self._journal.folder} cannot be written ({error.strerror or error}); training goes on, "
                    "but MLflow will lack what it logs meanwhile.",
                    file=sys.stderr,
                )
            self._lost_entries += 1

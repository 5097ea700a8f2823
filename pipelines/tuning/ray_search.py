"""Between Ray Tune, which runs trials, and the study, which knows them: one asks what to run, the other hears of it.

Ray's own OptunaSearch stores a trial that was stopped early as complete, leaves one whose loss is not a number running
for ever, and joins any study of the same name; and Tune's state is a pickle. So Tune keeps nothing of a sweep here.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.tuning.study import PendingTrial, Study

RUNG, VALUE, RATE, END = "rung", "value", "images_per_second", "denoise_end"  # keys of what a trial reports


class Board(Protocol):
    """Shows how the trials go."""

    def trial_started(self, pending: PendingTrial) -> None:
        """A trial has begun, or goes on."""

    def trial_validated(self, number: int, rung: int, value: float, rate: float) -> None:
        """A trial has validated."""

    def trial_ended(self, number: int) -> None:
        """A trial has ended."""


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands Ray Tune the trials of a study, and tells the study how they ended."""

    def __init__(self, study: Study, live_table: Board, prune: Callable[[int], object]) -> None:
        """``prune`` lets a trial know that it should leave."""
        super().__init__()
        self.study, self.live_table, self.prune = study, live_table, prune
        self.numbers: dict[str, int] = {}  # Tune's trial -> the study's
        self.pruned: set[int] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the configuration of the next trial, FINISHED when the study has begun all of them."""
        pending = self.study.ask()
        if pending is None:
            return str(Searcher.FINISHED)
        self.numbers[trial_id] = pending.number
        self.live_table.trial_started(pending)
        return {"number": pending.number, "params": pending.params}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study the state that the trial has ended in; one that was interrupted stays as it is."""
        number = self.numbers[trial_id]
        end = json.loads((result or {}).get(END, "{}"))
        if number in self.pruned:
            self.study.prune(number)
        elif error:
            self.study.fail(number, "its process died, more often than ray.max_failures allows")
        elif "failed" in end:
            self.study.fail(number, end["failed"])
        elif "figures" in end:
            self.study.complete(number, end["figures"], end["images"])
        else:
            return
        self.live_table.trial_ended(number)

    def on_report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note what a trial has reported, and let it know if it should leave."""
        if RUNG not in result or trial_id not in self.numbers:
            return
        number, rung, value = self.numbers[trial_id], int(result[RUNG]), float(result[VALUE])
        if number in self.pruned or self.study.trials()[number].state.is_finished():
            return
        rate = float(result[RATE])
        self.live_table.trial_validated(number, rung, value, rate)
        if self.study.record_validation(number, rung, value, rate):
            self.pruned.add(number)
            self.prune(number)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study is all there is to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str) -> None:
        """Write nothing."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles what it was given, and nobody reads it."""
        return {}


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Passes on what trials report. It stops none: one that is pruned leaves by itself.

    Where Tune ends a trial's process, its Ray Train run now and then leaves its resources taken (ray#54305).
    """

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return CONTINUE."""
        self.searcher.on_report(trial.trial_id, result)
        return str(TrialScheduler.CONTINUE)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, as StudySearcher does."""
        return {}

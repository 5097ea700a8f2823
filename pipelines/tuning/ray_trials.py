"""Trials on Ray Tune: where the next one comes from, what runs it, and how the study learns of its end.

StudySearcher and StudyScheduler live in the process that drives the sweep, ``run_trial`` in a process of its own for
each trial that runs. Ray's own OptunaSearch stores a trial that was stopped early as complete, leaves one whose loss is
not a number running for ever, and joins any study of the same name; and Tune's state is a pickle. So Tune keeps nothing
of a sweep here.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from denoise.errors import UserError
from pipelines.training.on_ray import train_trial
from pipelines.training.progress import Stopped
from pipelines.tuning.live_table import LiveTable
from pipelines.tuning.plan import PARENT_TAG, SEED_TAG, SWEEP_TAG, TRIAL_TAG, Plan
from pipelines.tuning.space import trial_config
from pipelines.tuning.study import PendingTrial, Study

RUNG, VALUE, RATE, END = "rung", "value", "images_per_second", "denoise_end"  # keys of what a trial reports


@dataclass(frozen=True, repr=False)  # Ray may show the text of its arguments, and an address may hold a password
class TrialTask:
    """What all trials of a sweep share. Ray serialises it."""

    plan: Plan
    parent: str  # id of the sweep's run in MLflow, empty while that does not answer
    prune_flags: Any  # handle of the actor PruneFlags


class StudySearcher(Searcher):  # type: ignore[misc]
    """Gives Ray Tune the trials of a study, and records in the study how they end.

    Args:
        study: the study.
        live_table: shows how the trials are doing.
        prune: called with the number of a trial that should stop.
    """

    def __init__(self, study: Study, live_table: LiveTable, prune: Callable[[int], object]) -> None:
        super().__init__()
        self.study, self.live_table, self.prune = study, live_table, prune
        self.numbers: dict[str, int] = {}  # Tune's trial -> the study's
        self.pruned: set[int] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next trial, as ``run_trial`` takes it; FINISHED when the study has begun all of them."""
        trial = self.study.ask()
        if trial is None:
            return str(Searcher.FINISHED)
        self.numbers[trial_id] = trial.number
        self.live_table.trial_started(trial)
        return trial._asdict()

    def on_report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record a validation that a trial reports, and have the trial stop if the study prunes it."""
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

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record how a trial has ended; one that was interrupted stays as it is."""
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

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study is the only record."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str) -> None:
        """Write nothing."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher, and nobody reads that."""
        return {}


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Passes on what trials report. It stops none of them: a trial that is pruned returns by itself.

    Where Tune ends a trial's process, the resources of its Ray Train run now and then stay taken (ray#54305).
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


def run_trial(suggestion: Mapping[str, Any], task: TrialTask) -> None:
    """Train as a trial's parameters say, once for each seed, and report how that ended.

    Args:
        suggestion: the trial, as ``StudySearcher.suggest`` returns it.
        task: what all trials share.
    """
    trial, plan = PendingTrial(**suggestion), task.plan
    end: dict[str, Any]
    try:
        figures = {seed: _train(task, trial, seed) for seed in plan.sweep.seeds}
    except UserError as error:
        end = {"failed": str(error)}
    except Stopped:
        end = {"pruned": True}
    else:
        train = trial_config(plan.sweep, plan.base, trial.params, 0).train
        end = {"figures": figures, "images": train.steps * train.batch_size}
    tune.report({END: json.dumps(end)})


def _train(task: TrialTask, trial: PendingTrial, seed: int) -> dict[str, float]:
    """Train with one seed and return the last metrics; the first seed's validations decide about pruning."""
    plan, sweep = task.plan, task.plan.sweep
    config = trial_config(sweep, plan.base, trial.params, seed)

    def on_validation(row: Mapping[str, float]) -> bool:
        """Report a validation to the sweep, and return whether the trial is pruned."""
        if seed != sweep.seeds[0]:
            return False
        rung, value = round(row["step"] / config.train.eval_every), row.get(sweep.objectives[0], math.nan)
        try:
            tune.report({RUNG: rung, VALUE: value, RATE: row["images_per_second"]})  # returns when it was processed
        except SystemExit:  # in this way Tune ends a thread when it ends the trial
            return True
        return bool(ray.get(task.prune_flags.is_pruned.remote(trial.number)))

    tags = {SWEEP_TAG: plan.name, TRIAL_TAG: trial.number, SEED_TAG: seed}
    if task.parent:
        tags[PARENT_TAG] = task.parent
    return dict(train_trial(config, plan.run_names(trial.number)[seed], tags, on_validation))

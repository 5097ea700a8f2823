"""Trials on Ray Tune: where the next one comes from, what runs it, and how the study learns of its end.

StudySearcher lives in the process that drives the sweep, ``run_trial`` in a process that runs one trial after another.
Ray's own OptunaSearch stores a trial that was stopped early as complete, leaves one whose loss is not a number running
for ever, and joins any study of the same name; and Tune's state is a pickle. So Tune keeps nothing of a sweep here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher

from pipelines.training.side_by_side import End, PlainSearcher, Reporter
from pipelines.training.trial import train_trial
from pipelines.tuning.live_table import LiveTable
from pipelines.tuning.plan import PARENT_TAG, SEED_TAG, SWEEP_TAG, TRIAL_TAG, Plan
from pipelines.tuning.space import trial_config
from pipelines.tuning.study import PendingTrial, Study

RUNG, VALUE, RATE = "rung", "value", "images_per_second"  # keys of what a trial reports


@dataclass(frozen=True, repr=False)  # Ray may show the text of its arguments, and an address may hold a password
class TrialTask:
    """What all trials of a sweep share. Ray serialises it."""

    plan: Plan
    parent: str  # id of the sweep's run in MLflow, empty while that does not answer


class StudySearcher(PlainSearcher):
    """Gives Ray Tune the trials of a study, and records in the study how they end.

    Args:
        study: the study.
        live_table: shows how the trials are doing.
    """

    def __init__(self, study: Study, live_table: LiveTable) -> None:
        super().__init__()
        self.study, self.live_table = study, live_table
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
        if number in self.pruned or self._has_ended(number):
            return
        rate = float(result[RATE])
        self.live_table.trial_validated(number, rung, value, rate)
        if self.study.record_validation(number, rung, value, rate):
            self.pruned.add(number)
            self.stop(trial_id)

    def on_end(self, trial_id: str, end: End) -> None:
        """Record how a trial has ended; one that was interrupted stays as it is."""
        number = self.numbers[trial_id]
        if self._has_ended(number):
            return
        if number in self.pruned:
            self.study.prune(number)
        elif "failed" in end:
            self.study.fail(number, end["failed"])
        elif "figures" in end:
            self.study.complete(number, end["figures"], end["images"])
        else:
            return
        self.live_table.trial_ended(number)

    def _has_ended(self, number: int) -> bool:
        return bool(self.study.trials()[number].state.is_finished())


def run_trial(suggestion: Mapping[str, Any], report: Reporter, task: TrialTask) -> End:
    """Train as a trial's parameters say, once for each seed, and return how that ended.

    Args:
        suggestion: the trial, as ``StudySearcher.suggest`` returns it.
        report: carries its validations to ``StudySearcher.on_report``.
        task: what all trials share.
    """
    trial, plan = PendingTrial(**suggestion), task.plan
    figures = {seed: _train(task, trial, seed, report) for seed in plan.sweep.seeds}
    train = trial_config(plan.sweep, plan.base, trial.params, 0).train
    return {"figures": figures, "images": train.steps * train.batch_size}


def _train(task: TrialTask, trial: PendingTrial, seed: int, report: Reporter) -> dict[str, float]:
    """Train with one seed and return the last metrics; the first seed's validations decide about pruning."""
    plan, sweep = task.plan, task.plan.sweep
    config = trial_config(sweep, plan.base, trial.params, seed)

    def on_validation(row: Mapping[str, float]) -> bool:
        """Report a validation to the sweep, and return whether the trial is pruned."""
        if seed != sweep.seeds[0]:
            return False
        rung, value = round(row["step"] / config.train.eval_every), row.get(sweep.objectives[0], math.nan)
        return report({RUNG: rung, VALUE: value, RATE: row["images_per_second"]})

    tags = {SWEEP_TAG: plan.name, TRIAL_TAG: trial.number, SEED_TAG: seed}
    if task.parent:
        tags[PARENT_TAG] = task.parent
    return dict(train_trial(config, plan.run_names(trial.number)[seed], tags, on_validation, report.messages))

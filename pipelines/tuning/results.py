"""What a sweep has come to: its table, its best trial, and MLflow's runs told the truth about each trial."""

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError, first_line
from denoise.files import write_json
from pipelines.console import say
from pipelines.tracking.client import client, finish_run, known_run, plain_errors
from pipelines.tuning.plots import draw
from pipelines.tuning.space import DIRECTIONS
from pipelines.tuning.study import REASON, SEEDS, Study, rung_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.tracking.client import Status
    from pipelines.tuning.plan import Plan

STATE_TAG = "denoise.trial.state"
ENDS: "dict[str, Status]" = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
TABLE, SUMMARY = "trials.csv", "summary.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A finished sweep."""

    plan: "Plan"
    study: Study
    parent: str  # id of the sweep's run in MLflow, empty while that does not answer
    rows: list[Row]  # one a trial, in their order

    @classmethod
    def of(cls, plan: "Plan", study: Study, parent: str) -> "Results":
        """Return the results of a study."""
        return cls(plan, study, parent, [_row(plan, trial) for trial in study.trials()])

    @property
    def best(self) -> Row | None:
        """Return the row of the best trial, None where none was finished."""
        best = self.study.best()
        return None if best is None else self.rows[best.number]

    def first_failure(self) -> str:
        """Return why the first trial that failed did so."""
        return next((row["reason"] for row in self.rows if row["reason"]), "none was finished")

    def summary(self) -> dict[str, Any]:
        """Return what the sweep found, as plain data."""
        states = [row["state"] for row in self.rows]
        return {
            "sweep": self.plan.name,
            "title": self.plan.sweep.title,
            "objectives": list(self.plan.sweep.objectives),
            "trials": {state: states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL")},
            "steps": sum(row["steps"] for row in self.rows),
            "best": self.best,
            "rank_correlation": rank_correlation(self.rows),
            "run_id": self.parent or None,
        }

    def publish(self, folder: Path) -> None:
        """Write the table and the summary to a folder, and to the sweep's run if MLflow answers."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        write_json(folder / SUMMARY, self.summary())
        draw(self.study.study, folder, self.plan.sweep)
        if self.parent:
            try:
                self._to_mlflow(folder)
            except UserError as error:
                say(f"warning: MLflow lacks images of {self.plan.name} ({first_line(error)}); they are in {folder}.")

    def _to_mlflow(self, folder: Path) -> None:
        """Put the figures and files of the sweep into its run."""
        uri, found = self.plan.base.tracking.uri, self.summary()
        with plain_errors(uri):
            api = client(uri)
            for file in sorted(path for path in folder.iterdir() if path.is_file()):
                api.log_artifact(self.parent, str(file), "sweep")
            for state, count in found["trials"].items():
                api.log_metric(self.parent, f"trials.{state.lower()}", count)
            for key in self.plan.sweep.objectives:
                api.log_metric(self.parent, f"best.{key}", found["best"][key])
            api.set_tag(self.parent, "denoise.best_trial", found["best"]["trial"])


def rank_correlation(rows: list[Row]) -> float | None:
    """Return Spearman's rank correlation of val_psnr and -val_loss, None where fewer than three trials have both.

    Near 1, the loss that needs no clean images chooses what the PSNR would have chosen.
    """
    from scipy.stats import spearmanr

    measured = [(row["val_psnr"], row["val_loss"]) for row in rows]
    both = [(psnr, -loss) for psnr, loss in measured if psnr is not None and loss is not None]
    if len(both) < 3:
        return None
    found = float(spearmanr(*zip(*both, strict=True)).statistic)
    return found if math.isfinite(found) else None


def finalize_mlflow_runs(plan: "Plan", study: Study) -> str:
    """Give the MLflow runs of all trials their final status and state; return the id of the sweep's run.

    An empty id, and one warning, where MLflow does not answer.
    """
    tracked = plan.base.tracking
    try:
        with plain_errors(tracked.uri):
            parent = known_run(tracked.uri, tracked.experiment, plan.name)
            if parent is None:
                return ""
            api = client(tracked.uri)
            for trial in study.trials():
                _finalize_trial(api, plan, parent.info.run_id, trial)
            return str(parent.info.run_id)
    except UserError as error:
        say(
            f"warning: MLflow does not know yet how the trials of {plan.name} ended ({first_line(error)}); the same "
            "command tells it later."
        )
        return ""


def _finalize_trial(api: "MlflowClient", plan: "Plan", parent: str, trial: Any) -> None:
    from pipelines.tracking.lifecycle import finish, journal_folder
    from pipelines.tuning.trial import PARENT_TAG, run_names

    tracked = plan.base.tracking
    status = ENDS.get(trial.state.name, "KILLED")
    for name in run_names(plan.sweep, plan.name, trial.number).values():
        journal = journal_folder(plan.base.ray.storage, name)
        run = known_run(tracked.uri, tracked.experiment, name)
        if run is not None and run.data.tags.get(STATE_TAG) == trial.state.name:
            continue
        if journal.is_dir() and (run is None or run.info.status != status):
            finish(journal, status)  # with what the journal still holds
            run = known_run(tracked.uri, tracked.experiment, name)
        if run is None:
            continue
        if run.info.status != status:
            finish_run(tracked.uri, run.info.run_id, status)
        api.set_tag(run.info.run_id, PARENT_TAG, parent)
        api.set_tag(run.info.run_id, STATE_TAG, trial.state.name)


def _row(plan: "Plan", trial: Any) -> Row:
    """Return a trial as a row: mean and deviation over seeds, the last known value where it was pruned."""
    from pipelines.tuning.space import trial_config

    sweep, first = plan.sweep, plan.sweep.objectives[0]
    by_seed: dict[str, dict[str, float]] = trial.user_attrs.get(SEEDS, {})
    figures = {key: [one[key] for one in by_seed.values() if key in one] for key in DIRECTIONS}
    last = trial.values or list(trial.intermediate_values.values())[-1:]
    train = trial_config(sweep, plan.base, trial.params, sweep.seeds[0]).train
    rungs = rung_of(trial) + sweep.evaluations * (len(by_seed) - 1 if by_seed else 0)
    return {
        "trial": trial.number,
        "state": trial.state.name,
        **trial.params,
        first: last[0] if last else None,
        "deviation": statistics.stdev(figures[first]) if trial.values and len(figures[first]) > 1 else None,
        **{key: statistics.fmean(found) if found else None for key, found in figures.items() if key != first},
        "steps": rungs * train.eval_every,
        "reason": trial.user_attrs.get(REASON, ""),
    }

"""Sweep results: the trial table, the best trial, and the final status of each MLflow run."""

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError, first_line
from denoise.files import write_json
from pipelines.console import say
from pipelines.tracking.client import client, existing_run, finish_run, plain_errors
from pipelines.tuning.plan import PARENT_TAG, Plan
from pipelines.tuning.plots import write_plots
from pipelines.tuning.space import DIRECTIONS, trial_config
from pipelines.tuning.study import REASON, SEEDS, Study, rung_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.tracking.client import Status

STATE_TAG = "denoise.trial.state"
RUN_STATUS: "dict[str, Status]" = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
TABLE, SUMMARY = "trials.csv", "summary.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A finished sweep."""

    plan: Plan
    study: Study
    parent: str  # id of the sweep's run in MLflow, empty while that does not answer
    rows: list[Row]  # one for each trial, in their order

    @classmethod
    def of(cls, plan: Plan, study: Study, parent: str) -> "Results":
        """Return the results of a study."""
        return cls(plan, study, parent, [_row(plan, trial) for trial in study.trials()])

    @property
    def best(self) -> Row | None:
        """Return the row of the best trial, None where no trial is complete."""
        best = self.study.best()
        return None if best is None else self.rows[best.number]

    def first_failure(self) -> str:
        """Return the reason of the first trial that failed."""
        return next((row["reason"] for row in self.rows if row["reason"]), "none was finished")

    def summary(self) -> dict[str, Any]:
        """Return the results as plain data."""
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
        write_plots(self.study.study, folder, self.plan.sweep)
        if self.parent:
            try:
                self._log_to_mlflow(folder)
            except UserError as error:
                say(f"warning: MLflow lacks results of {self.plan.name} ({first_line(error)}); they are in {folder}.")

    def _log_to_mlflow(self, folder: Path) -> None:
        """Log the figures and files of the sweep to its run."""
        uri, summary = self.plan.base.tracking.uri, self.summary()
        with plain_errors(uri):
            api = client(uri)
            for file in sorted(path for path in folder.iterdir() if path.is_file()):
                api.log_artifact(self.parent, str(file), "sweep")
            for state, count in summary["trials"].items():
                api.log_metric(self.parent, f"trials.{state.lower()}", count)
            for key in self.plan.sweep.objectives:
                api.log_metric(self.parent, f"best.{key}", summary["best"][key])
            api.set_tag(self.parent, "denoise.best_trial", summary["best"]["trial"])


def rank_correlation(rows: list[Row]) -> float | None:
    """Return Spearman's rank correlation of val_psnr and -val_loss, None where fewer than three trials have both.

    Near 1, the loss, which needs no clean images, ranks the trials as the PSNR does.
    """
    from scipy.stats import spearmanr

    measured = [(row["val_psnr"], row["val_loss"]) for row in rows]
    pairs = [(psnr, -loss) for psnr, loss in measured if psnr is not None and loss is not None]
    if len(pairs) < 3:
        return None
    correlation = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return correlation if math.isfinite(correlation) else None


def finalize_mlflow_runs(plan: Plan, study: Study) -> str:
    """Give the MLflow runs of all trials their final status and state; return the id of the sweep's run.

    Where MLflow does not answer, print one warning and return the empty string.
    """
    tracking = plan.base.tracking
    try:
        with plain_errors(tracking.uri):
            parent = existing_run(tracking.uri, tracking.experiment, plan.name)
            if parent is None:
                return ""
            api = client(tracking.uri)
            for trial in study.trials():
                _finalize_trial(api, plan, parent.info.run_id, trial)
            return str(parent.info.run_id)
    except UserError as error:
        say(
            f"warning: MLflow does not know yet how the trials of {plan.name} ended ({first_line(error)}); the same "
            "command tells it later."
        )
        return ""


def _finalize_trial(api: "MlflowClient", plan: Plan, parent: str, trial: Any) -> None:
    """Give the MLflow runs of a trial their final status and state, with what their journals still hold."""
    from pipelines.tracking.lifecycle import finish, journal_folder

    tracking = plan.base.tracking
    status = RUN_STATUS.get(trial.state.name, "KILLED")
    for name in plan.run_names(trial.number).values():
        journal = journal_folder(plan.base.ray.storage, name)
        run = existing_run(tracking.uri, tracking.experiment, name)
        if run is not None and run.data.tags.get(STATE_TAG) == trial.state.name:
            continue
        if journal.is_dir() and (run is None or run.info.status != status):
            finish(journal, status, tracking.uri)
            run = existing_run(tracking.uri, tracking.experiment, name)
        if run is None:
            continue
        if run.info.status != status:
            finish_run(tracking.uri, run.info.run_id, status)
        api.set_tag(run.info.run_id, PARENT_TAG, parent)
        api.set_tag(run.info.run_id, STATE_TAG, trial.state.name)


def _row(plan: Plan, trial: Any) -> Row:
    """Return a trial as a row: mean and deviation over seeds, the last reported value where it was pruned."""
    sweep, first = plan.sweep, plan.sweep.objectives[0]
    by_seed: dict[str, dict[str, float]] = trial.user_attrs.get(SEEDS, {})
    figures = {key: [metrics[key] for metrics in by_seed.values() if key in metrics] for key in DIRECTIONS}
    last = trial.values or list(trial.intermediate_values.values())[-1:]
    train = trial_config(sweep, plan.base, trial.params, sweep.seeds[0]).train
    rungs = rung_of(trial) + sweep.evaluations * (len(by_seed) - 1 if by_seed else 0)
    return {
        "trial": trial.number,
        "state": trial.state.name,
        **trial.params,
        first: last[0] if last else None,
        "deviation": statistics.stdev(figures[first]) if trial.values and len(figures[first]) > 1 else None,
        **{key: statistics.fmean(values) if values else None for key, values in figures.items() if key != first},
        "steps": rungs * train.eval_every,
        "reason": trial.user_attrs.get(REASON, ""),
    }

"""The tune stage: a sweep is a study in Optuna, whose trials Ray Tune runs, below one run in MLflow.

One trial, from file to file: ``_tune`` here hands training/side_by_side.run_all a ray_trials.StudySearcher, which takes
the next trial from study.Study. A process, which runs one trial after another, calls ray_trials.run_trial and that
training/trial.train_trial. Where a trial has one worker, this process is the worker: it calls the core's loop, reports
each validation to Tune and waits until StudySearcher has recorded it in the study. If the study prunes the trial, the
actor training/channel.MessagesActor says so then: training saves a checkpoint and returns. A trial of several workers
is a Ray Train run (training/on_ray.fit), whose validations come through the same actor.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from denoise.errors import UserError
from denoise.redaction import without_passwords
from pipelines.cluster.connect import ray_cluster
from pipelines.cluster.workers import fit_to_cluster
from pipelines.console import say
from pipelines.tracking import client as tracking
from pipelines.tracking.lifecycle import journal_folder, tracked_run
from pipelines.tracking.runs import RunSpec
from pipelines.tuning.challenger import Challenger, register_challenger
from pipelines.tuning.live_table import LiveTable
from pipelines.tuning.plan import Plan
from pipelines.tuning.results import Results, finalize_mlflow_runs
from pipelines.tuning.space import identity
from pipelines.tuning.study import Study

SWEEPS = Path("sweeps")  # folder of what a sweep leaves: images, table, model


@dataclass(frozen=True)
class SweepOutcome:
    """A finished sweep and the model of its best trial."""

    results: Results
    challenger: Challenger


def run_sweep(plan: Plan, concurrency: int | None = None) -> SweepOutcome:
    """Run the remaining trials of a sweep and return its results.

    Args:
        plan: the sweep.
        concurrency: trials side by side at most; by default as many as the cluster has room for.

    Raises:
        UserError: the cluster has no room for a trial, or every trial failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the next start resumes the trials that had begun.
    """
    study = Study(plan.base.tune.storage, plan.name, plan.sweep, identity(plan.sweep, plan.base, plan.data_digest))
    study.lease.keep_alive()
    study.requeue()
    spec, journal = plan.run_spec(), journal_folder(plan.base.ray.storage, plan.name)
    with tracked_run(spec, journal) as run:
        say(f"{plan.name}: MLflow at {without_passwords(spec.uri)}")
        try:
            if study.remaining():
                _tune(plan, study, run.spec, concurrency)
        finally:
            study.release()
            parent = finalize_mlflow_runs(plan, study)
        if study.remaining():
            raise KeyboardInterrupt
        results = Results.of(plan, study, parent)
        if results.best is None:
            raise UserError(f"all trials of {plan.name} failed: {results.first_failure()}")
        results.publish(SWEEPS / plan.name)
        return SweepOutcome(results, register_challenger(plan, results.best, SWEEPS / plan.name))


def _tune(plan: Plan, study: Study, spec: RunSpec, concurrency: int | None) -> None:
    """Let Ray Tune run the remaining trials."""
    with ray_cluster(plan.base, state_api=plan.base.ray.workers not in ("auto", 1)):
        from pipelines.training.side_by_side import run_all
        from pipelines.tuning.ray_trials import StudySearcher, TrialTask, run_trial

        plan = dataclasses.replace(plan, base=fit_to_cluster(plan.base, side_by_side=True))
        live_table = LiveTable(study)
        work = partial(run_trial, task=TrialTask(plan, _run_id(spec)))
        searcher, count = StudySearcher(study, live_table), study.remaining()
        with live_table.displayed():
            run_all(work, searcher, plan.base, name=plan.name, count=count, concurrency=concurrency)


def _run_id(spec: RunSpec) -> str:
    """Return the id of the sweep's run in MLflow; empty where that does not answer: its trials get it at the end."""
    try:
        run = tracking.existing_run(spec.uri, spec.experiment, spec.name)
    except UserError:
        return ""
    return str(run.info.run_id) if run else ""

"""The tune stage: a sweep is a study in Optuna, whose trials Ray Tune runs, below one run in MLflow.

One trial, from file to file: ``_tune`` here starts Ray Tune, which asks ray_trials.StudySearcher for a trial; that
takes it from study.Study. Tune runs ray_trials.run_trial in a process of its own. It calls training/on_ray.train_trial,
whose workers run training/worker.train_worker and send each validation through the actor training/channel.RunChannel
back to run_trial, which reports it to Tune. StudyScheduler records it in the study. If the study prunes the trial, the
actor training/channel.PruneFlags says so to run_trial, which stops its workers through their RunChannel and returns.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from denoise.config import Config
from denoise.errors import UserError
from denoise.redaction import without_passwords
from pipelines.cluster.connect import ray_address, ray_cluster, this_node, use_gpu, worker_capacity
from pipelines.console import say
from pipelines.signals import ctrl_c_on_sigterm, on_sigterm, tune_interrupt
from pipelines.tracking import client as tracking
from pipelines.tracking.lifecycle import journal_folder, tracked_run
from pipelines.tracking.runs import RunSpec
from pipelines.training.channel import PruneFlags
from pipelines.tuning.challenger import Challenger, register_challenger
from pipelines.tuning.live_table import LiveTable
from pipelines.tuning.plan import Plan
from pipelines.tuning.results import Results, finalize_mlflow_runs
from pipelines.tuning.space import identity
from pipelines.tuning.study import Study

# A trial's own process only waits. It does so on the head, which stays when spot machines go.
ON_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}
STOP_SECONDS = 60  # that a trial which is stopped has to save a checkpoint and return, before it is killed
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
        concurrency: trials side by side at most; by default as many as the cluster has room for, and one more.

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
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = str(STOP_SECONDS)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1")
    with ray_cluster(plan.base, state_api=True):
        import ray
        from ray import tune

        _keep_keys_of_aws()
        from pipelines.tuning.ray_trials import StudyScheduler, StudySearcher, TrialTask, run_trial

        prune_flags = ray.remote(num_cpus=0, scheduling_strategy=this_node())(PruneFlags).remote()
        task = TrialTask(plan, _run_id(spec), prune_flags)
        live_table = LiveTable(study)
        searcher = StudySearcher(study, live_table, lambda number: ray.get(prune_flags.prune.remote(number)))
        trainable = tune.with_resources(
            tune.with_parameters(run_trial, task=task),
            tune.PlacementGroupFactory([ON_HEAD]),
        )
        with (
            tempfile.TemporaryDirectory(prefix="denoise-tune-") as folder,
            live_table.displayed(),
            on_sigterm(ctrl_c_on_sigterm),  # again, as Ray has put its own there, which aborts the process
            tune_interrupt(),
        ):
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=StudyScheduler(searcher),
                    num_samples=study.remaining(),
                    max_concurrent_trials=_concurrent_trials(plan.base, concurrency),
                    reuse_actors=True,  # a trial's process imports for seconds; the next trial need not
                ),
                run_config=tune.RunConfig(
                    name=plan.name,
                    storage_path=folder,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=plan.base.ray.max_failures),
                ),
            ).fit()


def _keep_keys_of_aws() -> None:
    """Keep Ray Tune from copying the keys of AWS to the trials' runtime environment, which Ray's logs show.

    The hosts of a cluster have keys of their own, as for ``denoise train``; Ray on this machine inherits the driver's.
    """
    # Private, and there is no switch: the names of the variables that Tune copies.
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.difference_update({name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")})


def _run_id(spec: RunSpec) -> str:
    """Return the id of the sweep's run in MLflow; empty where that does not answer: its trials get it at the end."""
    try:
        run = tracking.existing_run(spec.uri, spec.experiment, spec.name)
    except UserError:
        return ""
    return str(run.info.run_id) if run else ""


def _concurrent_trials(config: Config, maximum: int | None) -> int:
    """Return how many trials to have at a time: as many as there is room for, and one that gets ready meanwhile.

    That one waits until another has gone. It holds nothing, since a trial gets the places of all its workers at once.
    """
    places = worker_capacity(config, use_gpu(config)) // config.ray.workers
    if ray_address(config):  # a cluster that may grow
        if not places:
            say(f"the cluster has no room for a trial of {config.ray.workers} workers; trials wait until machines come")
        return maximum or max(places, 1) + 1
    if not places:
        raise UserError(
            f"this machine has no room for a trial of {config.ray.workers} workers; lower ray.workers or "
            "ray.cpus_per_worker, or set ray.gpu=no."
        )
    return min(places + 1, maximum or places + 1)

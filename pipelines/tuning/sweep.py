"""The tune stage: a sweep is a study in Optuna, whose trials Ray Tune runs, below one run in MLflow."""

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from denoise.config import Config, to_dict
from denoise.errors import UserError
from pipelines.cluster.connect import ray_address, ray_cluster, room, this_node, use_gpu
from pipelines.console import say
from pipelines.tracking import client as tracking
from pipelines.tracking.lifecycle import driven, journal_folder
from pipelines.tracking.runs import Opening
from pipelines.training.channel import Verdicts
from pipelines.tuning.challenger import Challenger, enter
from pipelines.tuning.live_table import Board
from pipelines.tuning.plan import Plan
from pipelines.tuning.results import Results, settle
from pipelines.tuning.space import identity
from pipelines.tuning.study import Study

# A trial's own process only waits. It does so on the head, which stays when spot machines go.
ON_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}
LEAVE_SECONDS = 60  # that a trial which is stopped has to save a checkpoint and go, before it is killed
SWEEPS = Path("sweeps")  # folder of what a sweep leaves: pictures, table, model


@dataclass(frozen=True)
class Swept:
    """A finished sweep and the model of its best trial."""

    results: Results
    challenger: Challenger


def run_sweep(plan: Plan, concurrency: int | None = None) -> Swept:
    """Run what is left of a sweep and return its results.

    Args:
        plan: the sweep.
        concurrency: trials side by side at most; by default as many as the cluster has room for, and one more.

    Raises:
        UserError: the cluster has no room for a trial, or every trial failed.
        KeyboardInterrupt: Ctrl-C came; what had begun goes on with the next start.
    """
    study = Study(plan.base.tune.storage, plan.name, plan.sweep, identity(plan.sweep, plan.base, plan.data_digest))
    study.claim.keep()
    study.requeue()
    opening, journal = plan.opening(), journal_folder(plan.base.ray.storage, plan.name)
    with driven(opening, journal) as run:
        say(f"{plan.name}: MLflow at {tracking.shown(opening.uri)}; to resume it: denoise tune --resume {plan.name}")
        try:
            if study.remaining():
                _tune(plan, study, run.opening, concurrency)
        finally:
            study.release()
            parent = settle(plan, study)
        if study.remaining():
            raise KeyboardInterrupt
        results = Results.of(plan, study, parent)
        if results.best is None:
            raise UserError(f"all trials of {plan.name} failed: {results.first_failure()}")
        results.publish(SWEEPS / plan.name)
        return Swept(results, enter(plan, results.best, SWEEPS / plan.name))


def _tune(plan: Plan, study: Study, opening: Opening, concurrency: int | None) -> None:
    """Let Ray Tune run the trials that are left."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = str(LEAVE_SECONDS)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1")
    with ray_cluster(plan.base, state_api=True):
        import ray
        from ray import tune

        from pipelines.tuning.ray_search import StudyScheduler, StudySearcher
        from pipelines.tuning.trial import run_trial

        verdicts = ray.remote(num_cpus=0, scheduling_strategy=this_node())(Verdicts).remote()
        task = {
            "name": plan.name,
            "sweep": dataclasses.asdict(plan.sweep),
            "base": to_dict(plan.base),
            "parent": _run_id(opening),
            "verdicts": verdicts,
        }
        board = Board(study)
        searcher = StudySearcher(study, board, lambda number: ray.get(verdicts.prune.remote(number)))
        trainable = tune.with_resources(
            tune.with_parameters(run_trial, task=task),
            tune.PlacementGroupFactory([ON_HEAD]),
        )
        with tempfile.TemporaryDirectory(prefix="denoise-tune-") as folder, board.shown():
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=StudyScheduler(searcher),
                    num_samples=study.remaining(),
                    max_concurrent_trials=_side_by_side(plan.base, concurrency),
                    reuse_actors=True,  # a trial's process imports for seconds; the next one needs no more
                ),
                run_config=tune.RunConfig(
                    name=plan.name,
                    storage_path=folder,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=plan.base.ray.max_failures),
                ),
            ).fit()


def _run_id(opening: Opening) -> str:
    """Return the id of the sweep's run in MLflow, empty where that does not answer: ``settle`` tells it later."""
    try:
        run = tracking.known_run(opening.uri, opening.experiment, opening.name)
    except UserError:
        return ""
    return str(run.info.run_id) if run else ""


def _side_by_side(config: Config, wanted: int | None) -> int:
    """Return how many trials to have at a time: as many as there is room for, and one that gets ready meanwhile.

    That one waits until another has gone. It holds nothing, since a trial gets the places of all its workers at once.
    """
    places = room(config, use_gpu(config)) // config.ray.workers
    if ray_address(config):  # which may grow
        if not places:
            say(f"the cluster has no room for a trial of {config.ray.workers} workers; trials wait until machines come")
        return wanted or max(places, 1) + 1
    if not places:
        raise UserError(
            f"this machine has no room for a trial of {config.ray.workers} workers; lower ray.workers or "
            "ray.cpus_per_worker, or set ray.gpu=no."
        )
    return min(places + 1, wanted or places + 1)

"""The tune stage: a sweep is a study in Optuna, whose trials Ray Tune runs, below one run in MLflow."""

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from denoise.config import Config, flatten, from_dict, to_dict
from denoise.errors import UserError
from pipelines import tracking
from pipelines.checkpoint_s3 import absolute
from pipelines.cluster import ray_address, ray_cluster, room, this_node, use_gpu
from pipelines.inputs import training_inputs
from pipelines.mailbox import Verdicts
from pipelines.progress import say
from pipelines.run_opening import Opening
from pipelines.run_sync import driven, journal_folder
from pipelines.tune_best import Challenger, enter
from pipelines.tune_board import Board
from pipelines.tune_results import Results, settle
from pipelines.tune_space import Dimension, Sweep, corners, identity, sweep_name, trial_config
from pipelines.tune_study import Study

# A trial's own process only waits. It does so on the head, which stays when spot machines go.
ON_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}
LEAVE_SECONDS = 60  # that a trial which is stopped has to save a checkpoint and go, before it is killed
SWEEPS = Path("sweeps")  # folder of what a sweep leaves: pictures, table, model


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to run anywhere."""

    name: str
    sweep: Sweep
    base: Config  # with absolute addresses
    data_digest: str  # of the training pictures

    def opening(self) -> Opening:
        """Return what opens the sweep's run in MLflow."""
        params = {f"space.{key}": _words(one) for key, one in self.sweep.space.items()}
        kept = {key: getattr(self.sweep, key) for key in ("trials", "sampler", "pruner", "objectives", "seeds", "seed")}
        return Opening(
            self.base.tracking.uri,
            self.base.tracking.experiment,
            self.name,
            tags={"mlflow.source.name": "denoise tune", "denoise.sweep": self.name, "title": self.sweep.title},
            params={**flatten(to_dict(self.base)), **params, **{f"sweep.{key}": kept[key] for key in kept}},
        )


def plan(sweep: Sweep, config: Config, kind: str, name: str | None = None) -> Plan:
    """Return a sweep with every value of its space checked, and addresses that other machines understand.

    Args:
        sweep: what to search.
        config: what all trials share.
        kind: the first word of the name, where none is given: the same command then finds its sweep again.
        name: of the sweep.

    Raises:
        UserError: a value that cannot be trained, or shards that are missing.
    """
    from denoise.train import check

    train = dataclasses.replace(config.train, val_loss=config.train.val_loss or "val_loss" in sweep.objectives)
    data = dataclasses.replace(config.data, root=str(Path(config.data.root).absolute()))
    ray = dataclasses.replace(config.ray, storage=absolute(config.ray.storage))
    where = dataclasses.replace(config.tracking, uri=tracking.resolve_uri(config.tracking.uri, Path.cwd()))
    base = from_dict(to_dict(dataclasses.replace(config, train=train, data=data, ray=ray, tracking=where)))
    for params in corners(sweep):
        one = trial_config(sweep, base, params, sweep.seeds[0])
        check(one)
    inputs = training_inputs(one, kind)
    found = inputs.versions["data_digest"]
    return Plan(name or sweep_name(sweep, base, found, kind), sweep, base, found)


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

        from pipelines.tune_search import StudyScheduler, StudySearcher
        from pipelines.tune_trial import run_trial

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


def _words(one: Dimension) -> str:
    kind = "choice" if one.choice else "float" if one.float else "int"
    return f"{kind} {list(one.ends())}{' log' if one.log else ''}"

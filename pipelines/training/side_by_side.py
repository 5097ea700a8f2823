"""Many small trainings side by side on Ray: each place of the cluster has one process, which trains one after another.

``run_all`` is Ray Tune with what we need of it: it gives out places, reuses processes, and tries again where one dies.
A sweep hands it a searcher that asks its study; run_list.py hands it a list of runs.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.train._internal.session import get_session
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from denoise.config import Config
from denoise.errors import UserError
from pipelines.cluster.connect import ray_address
from pipelines.cluster.workers import worker_capacity, worker_needs
from pipelines.console import say
from pipelines.signals import ctrl_c_on_sigterm, on_sigterm, tune_interrupt
from pipelines.training.channel import RunChannel, RunMessages, start_messages
from pipelines.training.progress import Stopped
from pipelines.training.trial import MemoryFullError

END, LEAVES = "denoise_end", "denoise_leaves"  # keys of what a process reports last: how it ended; whether it leaves
STOP_SECONDS = 60  # that a run which is stopped has to save a checkpoint and return, before it is killed
# The process of a run of several workers only waits. It does so on the head, which stays when spot machines go.
ON_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}
DIED = "its process died, more often than ray.max_failures allows"

End = dict[str, Any]
Work = Callable[[Mapping[str, Any], "Reporter"], End]


class PlainSearcher(Searcher):  # type: ignore[misc]
    """A Searcher of which Tune keeps nothing; a subclass gives out runs, and records how they end.

    Tune never stops a run by itself: one that should stop returns. Where Tune ends a process, the resources of a Ray
    Train run inside now and then stay taken (ray#54305).
    """

    messages: Any = None  # handle of the MessagesActor, while ``run_all`` runs

    def stop(self, trial_id: str) -> None:
        """Have a run stop at its next report."""
        RunChannel(self.messages, trial_id).ask(RunMessages.request_stop)

    def on_report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Take what a run reports."""

    def on_end(self, trial_id: str, end: End) -> None:
        """Take how a run ended, as it said; this may come twice. Empty: it was interrupted."""
        raise NotImplementedError

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take how a run ended, as Tune sees it."""
        end = json.loads((result or {}).get(END, "{}"))
        self.on_end(trial_id, {"failed": DIED} if error and not end else end)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str) -> None:
        """Write nothing."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher, and nobody reads that."""
        return {}


class _Reports(FIFOScheduler):  # type: ignore[misc]
    """Passes on what runs report."""

    def __init__(self, searcher: PlainSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return CONTINUE. A process that leaves has no other moment at which its end can be recorded."""
        if result.get(LEAVES):
            self.searcher.on_end(trial.trial_id, json.loads(result[END]))
            self.searcher.stop(trial.trial_id)
        elif END not in result:
            self.searcher.on_report(trial.trial_id, result)
        return str(TrialScheduler.CONTINUE)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, as PlainSearcher does."""
        return {}


class _WaitsForItsEnd:
    """Makes a process that Tune stops wait for its training, which is saving a checkpoint."""

    def cleanup(self) -> None:
        """Wait for the thread that trains, and release what Tune has set up."""
        get_session().finish(timeout=STOP_SECONDS)
        super().cleanup()  # type: ignore[misc]


def run_all(
    work: Work,
    searcher: PlainSearcher,
    config: Config,
    *,
    name: str,
    count: int,
    concurrency: int | None = None,
) -> None:
    """Let the connected cluster do ``work`` for everything that a searcher suggests.

    Args:
        work: called in a process of the cluster with a suggestion, and with what carries its reports to the searcher;
            returns how it ended. A UserError is a failure, which is not tried again.
        searcher: says what there is to do.
        config: from ``fit_to_cluster``: how many workers a run has and what they need; how many deaths it survives.
        name: of all of it.
        count: how much there is to do.
        concurrency: runs side by side at most; by default as many as the cluster has room for.

    Raises:
        UserError: this machine has no room for a run.
        KeyboardInterrupt: Ctrl-C or SIGTERM came.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = str(STOP_SECONDS)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1")
    _keep_keys_of_aws()
    needs = worker_needs(config) if config.ray.worker_count == 1 else ON_HEAD
    searcher.messages = messages = start_messages()

    def trainable(suggestion: dict[str, Any]) -> None:
        _work_and_report(suggestion, work, messages)

    trainable.__mixins__ = (_WaitsForItsEnd,)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="denoise-tune-") as folder, _stoppable():
        tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([needs])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Reports(searcher),
                num_samples=count,
                max_concurrent_trials=_concurrent_runs(config, concurrency),
                reuse_actors=True,  # a process imports for seconds; the next run need not
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.ray.max_failures),
            ),
        ).fit()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the runs at a checkpoint: Ray has put a handler there that aborts the process."""
    with on_sigterm(ctrl_c_on_sigterm), tune_interrupt():
        yield


class Reporter:
    """In a process of the cluster: carries what a run reports to the searcher, and whether to stop back to the run."""

    def __init__(self, messages: Any) -> None:
        self.interrupted = False  # whether Tune ends the run: nobody takes what it reports any more
        self.messages = messages  # handle of the MessagesActor
        self._channel = RunChannel(messages, tune.get_context().get_trial_id())

    def __call__(self, values: Mapping[str, Any]) -> bool:
        """Report, and return whether the run should stop."""
        try:
            tune.report(dict(values))  # returns when it was processed
        except SystemExit:  # in this way Tune ends a thread
            self.interrupted = True
        return self.interrupted or self.should_stop()

    def should_stop(self) -> bool:
        """Return whether the searcher has stopped the run."""
        return self._channel.ask(RunMessages.stop_requested)


def _work_and_report(suggestion: Mapping[str, Any], work: Work, messages: Any) -> None:
    """Do the work and report how it ended; leave the process if its memory was full.

    To Tune that looks like a death, after which it starts a new process with the same suggestion: that returns at once.
    """
    report, leaves = Reporter(messages), False
    if report.should_stop():
        return
    try:
        end = dict(work(suggestion, report))
    except UserError as error:  # bad input does not get better by trying again
        end, leaves = {"failed": str(error)}, isinstance(error, MemoryFullError)
    except Stopped:
        end = {"pruned": True}
    if report.interrupted:
        return
    tune.report({END: json.dumps(end), LEAVES: leaves})
    if leaves:
        os._exit(1)


def _keep_keys_of_aws() -> None:
    """Keep Ray Tune from copying the keys of AWS to the runs' runtime environment, which Ray's logs show.

    The hosts of a cluster have keys of their own, as for ``denoise train``; Ray on this machine inherits the driver's.
    """
    # Private, and there is no switch: the names of the variables that Tune copies.
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.difference_update({name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")})


def _concurrent_runs(config: Config, maximum: int | None) -> int:
    """Return how many runs to have at a time: as many as there is room for.

    A run of several workers needs seconds until these have started: one more gets ready meanwhile. It holds nothing,
    since a run gets the places of all its workers at once.
    """
    workers = config.ray.worker_count
    more, places = int(workers > 1), worker_capacity(config) // workers
    needed = f"a trial of {workers} worker{'s' * (workers > 1)}"
    if ray_address(config):  # a cluster that may grow
        if not places:
            say(f"the cluster has no room for {needed}; trials wait until machines come")
        return maximum or max(places, 1) + more
    if not places:
        raise UserError(
            f"this machine has no room for {needed}; lower ray.workers or ray.cpus_per_worker, or set ray.gpu=no."
        )
    return min(places + more, maximum or places + more)

"""A list of small trainings, side by side on the connected cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray.tune.search import Searcher

from denoise.config import Config
from pipelines.cluster.workers import fit_to_cluster
from pipelines.training.side_by_side import End, PlainSearcher, Reporter, run_all
from pipelines.training.trial import train_trial


@dataclass(frozen=True, repr=False)  # Ray may show the text of its arguments, and an address may hold a password
class SmallRun:
    """A training of one worker, with checkpoints and an MLflow run of its own name."""

    config: Config
    name: str
    tags: Mapping[str, object]


@dataclass(frozen=True)
class Outcome:
    """How a run has ended: with the metrics of its last step, or with the reason why it failed."""

    metrics: Mapping[str, float]
    failure: str = ""


def train_all(
    runs: Sequence[SmallRun],
    name: str,
    concurrency: int | None = None,
    show: Callable[[str, Outcome], None] | None = None,
) -> dict[str, Outcome]:
    """Train all runs on the connected cluster, side by side; a finished one is not trained again.

    Args:
        runs: what to train; the first one says what a run needs, and how many deaths it survives.
        name: of all of them together.
        concurrency: runs side by side at most; by default as many as the cluster has room for.
        show: called with the name and the outcome of every run as it ends.

    Returns:
        The outcomes by name, in the order of the runs.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the next call goes on from the runs' checkpoints.
    """
    runs = [replace(run, config=fit_to_cluster(run.config, side_by_side=True)) for run in runs]
    searcher = _ListSearcher(runs, show or (lambda name, outcome: None))
    run_all(
        partial(_train_one, runs=runs), searcher, runs[0].config, name=name, count=len(runs), concurrency=concurrency
    )
    if len(searcher.outcomes) < len(runs):
        raise KeyboardInterrupt
    return {run.name: searcher.outcomes[run.name] for run in runs}


def _train_one(suggestion: Mapping[str, Any], report: Reporter, runs: Sequence[SmallRun]) -> End:
    run = runs[suggestion["number"]]
    metrics = train_trial(run.config, run.name, run.tags, lambda row: report({"step": row["step"]}), report.messages)
    return {"metrics": dict(metrics)}


class _ListSearcher(PlainSearcher):
    """Gives out the runs of a list, and keeps how they ended."""

    def __init__(self, runs: Sequence[SmallRun], show: Callable[[str, Outcome], None]) -> None:
        super().__init__()
        self.runs, self.show = runs, show
        self.names: dict[str, str] = {}  # by Tune's trial
        self.outcomes: dict[str, Outcome] = {}  # by name

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the number of the next run; FINISHED when all have begun."""
        number = len(self.names)
        if number == len(self.runs):
            return str(Searcher.FINISHED)
        self.names[trial_id] = self.runs[number].name
        return {"number": number}

    def on_end(self, trial_id: str, end: End) -> None:
        """Keep how a run ended."""
        name = self.names[trial_id]
        if name in self.outcomes or not end.keys() & {"metrics", "failed"}:
            return
        self.outcomes[name] = Outcome(end.get("metrics", {}), end.get("failed", ""))
        self.show(name, self.outcomes[name])

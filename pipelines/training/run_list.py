"""A list of small tasks, each with a training of one worker at most, side by side on the connected cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ray.tune.search import Searcher

from denoise.config import Config
from pipelines.training.side_by_side import End, PlainSearcher, Reporter, run_all

RESULT = "result"  # key of what a task that has not failed returns


class Listener(Protocol):
    """What the driver does with what tasks report, by their number in the list."""

    def reported(self, number: int, report: Mapping[str, Any]) -> None:
        """Take what a task reports on its way."""

    def ended(self, number: int, result: Mapping[str, Any], failure: str) -> None:
        """Take what a task has returned, or why it failed."""


@dataclass(frozen=True, repr=False)  # Ray may show the text of its arguments, and an address may hold a password
class TaskList:
    """The tasks and what does one of them; Ray serialises it."""

    tasks: Sequence[Any]
    work: Callable[[Any, Reporter], Mapping[str, Any]]  # returns plain data


def run_each(tasks: TaskList, listener: Listener, config: Config, *, name: str, concurrency: int | None = None) -> None:
    """Do all tasks on the connected cluster, side by side.

    Args:
        tasks: what to do.
        listener: of what they report and how they end.
        config: from ``fit_to_cluster``: says what each task needs, and how many deaths it survives.
        name: of all of them together.
        concurrency: tasks side by side at most; by default as many as the cluster has room for.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came before all had ended.
    """
    searcher = _ListSearcher(tasks, listener)
    run_all(partial(_do, tasks=tasks), searcher, config, name=name, count=len(tasks.tasks), concurrency=concurrency)
    if len(searcher.done) < len(tasks.tasks):
        raise KeyboardInterrupt


def _do(suggestion: Mapping[str, Any], report: Reporter, tasks: TaskList) -> End:
    return {RESULT: dict(tasks.work(tasks.tasks[suggestion["number"]], report))}


class _ListSearcher(PlainSearcher):
    """Gives out the tasks of a list, and passes on what they report and how they end."""

    def __init__(self, tasks: TaskList, listener: Listener) -> None:
        super().__init__()
        self.tasks, self.listener = tasks, listener
        self.numbers: dict[str, int] = {}  # by Tune's trial
        self.done: set[int] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the number of the next task; FINISHED when all have begun."""
        number = len(self.numbers)
        if number == len(self.tasks.tasks):
            return str(Searcher.FINISHED)
        self.numbers[trial_id] = number
        return {"number": number}

    def on_report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass on what a task reports."""
        self.listener.reported(self.numbers[trial_id], result)

    def on_end(self, trial_id: str, end: End) -> None:
        """Pass on how a task ended, once."""
        number = self.numbers[trial_id]
        if number not in self.done and end.keys() & {RESULT, "failed"}:
            self.done.add(number)
            self.listener.ended(number, end.get(RESULT, {}), end.get("failed", ""))

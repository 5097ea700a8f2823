"""Progress of a sweep: a live table of its trials on a terminal, a line for each event in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.console import say
from pipelines.tuning.study import REASON, PendingTrial, Study, rung_of

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

MAX_ROWS = 12  # of the live table: the trials that run, then the newest


@dataclass
class RunningTrial:
    """What the table shows of a trial while it runs."""

    rung: int = 0  # validations so far
    value: float | None = None  # at the last of them
    rate: float = 0.0  # images per second
    started: float = field(default_factory=time.monotonic)


class LiveTable:
    """Shows the trials of a study while they run."""

    def __init__(self, study: Study) -> None:
        self.study, self.running = study, dict[int, RunningTrial]()
        self.live: Live | None = None
        self.durations: list[float] = []  # seconds of the trials that have ended in this process

    @contextmanager
    def displayed(self) -> Iterator[None]:
        """Show the table while the block runs, if standard error is a terminal."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        with Live(self.table(), console=Console(stderr=True), auto_refresh=False) as self.live:
            yield
        self.live = None

    def trial_started(self, pending: PendingTrial) -> None:
        """Show that a trial has begun, or was resumed."""
        self.running[pending.number] = RunningTrial()
        self._show(f"trial {pending.number}: {as_overrides(pending.params)}")

    def trial_validated(self, number: int, rung: int, value: float, rate: float) -> None:
        """Show a trial's latest validation."""
        running = self.running.setdefault(number, RunningTrial())
        running.rung, running.value, running.rate = rung, value, rate
        self._show()

    def trial_ended(self, number: int) -> None:
        """Show how a trial has ended."""
        running = self.running.pop(number, RunningTrial())
        self.durations.append(time.monotonic() - running.started)
        trial = self.study.trials()[number]
        result = f" {trial.values[0]:.4g}" if trial.values else f" ({trial.user_attrs.get(REASON, 'stopped early')})"
        self._show(f"trial {number}: {trial.state.name}{result}; {self.summary()}")

    def summary(self) -> str:
        """Return how far the sweep is, in one line."""
        best, remaining = self.study.best(), self.study.remaining()
        objective = self.study.sweep.objectives[0]
        best_so_far = f"best {objective} {best.values[0]:.4g} (trial {best.number}), " if best else ""
        total = self.study.sweep.trials
        return f"{best_so_far}{total - remaining} of {total} trials done{self._time_left(remaining)}"

    def table(self) -> "Table":
        """Return the trials that run and the newest of the others as a table."""
        from rich.table import Table

        sweep = self.study.sweep
        keys = list(sweep.space)
        table = Table(title=self.summary(), caption=f"sweep {self.study.name}")
        for column in ("trial", "state", *keys, sweep.objectives[0], "validation", "images/s"):
            table.add_column(column, justify="left" if column in ("state", *keys) else "right")
        for trial in visible_trials(self.study.trials(), self.running):
            table.add_row(*self._row(trial, keys))
        return table

    def _row(self, trial: Any, keys: list[str]) -> list[str]:
        running = self.running.get(trial.number)
        values = trial.values or list(trial.intermediate_values.values())[-1:]
        if running and running.value is not None:
            values = [running.value]
        rung = running.rung if running else rung_of(trial)
        return [
            str(trial.number),
            trial.state.name if running is None else "RUNNING",
            *(format_value(trial.params.get(key, "")) for key in keys),
            f"{values[0]:.4g}" if values else "",
            f"{rung}/{self.study.sweep.evaluations}",
            f"{running.rate:.0f}" if running and running.rate else "",
        ]

    def _time_left(self, trials: int) -> str:
        if not self.durations or not trials:
            return ""
        mean, side_by_side = sum(self.durations) / len(self.durations), max(1, len(self.running))
        return f", {trials * mean / side_by_side / 60:.0f} min left"

    def _show(self, line: str = "") -> None:
        if self.live is not None:
            self.live.update(self.table(), refresh=True)
        elif line:
            say(line)


def visible_trials(trials: Any, running: dict[int, RunningTrial]) -> list[Any]:
    """Return the trials that the live table has room for: all that run, and the newest of the others."""
    others = [trial.number for trial in trials if trial.number not in running]
    rows = max(0, MAX_ROWS - len(running))
    numbers = {*others[max(0, len(others) - rows) :], *running}
    return [trial for trial in trials if trial.number in numbers]


def as_overrides(params: dict[str, Any]) -> str:
    """Return parameters as the command line has them."""
    return " ".join(f"{key}={format_value(value)}" for key, value in params.items())


def format_value(value: object) -> str:
    """Return a value with few digits, for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""What a person sees of a sweep: one live table of its trials on a terminal, a line for each event in a log."""

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

SHOWN = 12  # trials in the live table: those that run, then the newest


@dataclass
class RunningTrial:
    """A trial that runs."""

    rung: int = 0
    value: float | None = None
    rate: float = 0.0
    since: float = field(default_factory=time.monotonic)


class LiveTable:
    """Shows the trials of a study while they run."""

    def __init__(self, study: Study) -> None:
        self.study, self.running = study, dict[int, RunningTrial]()
        self.live: Live | None = None
        self.took: list[float] = []  # seconds of the trials that have ended here

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
        """A trial has begun, or goes on."""
        self.running[pending.number] = RunningTrial()
        self._show(f"trial {pending.number}: {as_overrides(pending.params)}")

    def trial_validated(self, number: int, rung: int, value: float, rate: float) -> None:
        """A trial has validated."""
        one = self.running.setdefault(number, RunningTrial())
        one.rung, one.value, one.rate = rung, value, rate
        self._show()

    def trial_ended(self, number: int) -> None:
        """A trial has ended."""
        one = self.running.pop(number, RunningTrial())
        self.took.append(time.monotonic() - one.since)
        trial = self.study.trials()[number]
        left = self.study.remaining()
        reached = f" {trial.values[0]:.4g}" if trial.values else f" ({trial.user_attrs.get(REASON, 'stopped early')})"
        self._show(f"trial {number}: {trial.state.name}{reached}; {self.summary(left)}")

    def summary(self, left: int) -> str:
        """Return how far the sweep is, in one line."""
        best = self.study.best()
        objective = self.study.sweep.objectives[0]
        reached = f"best {objective} {best.values[0]:.4g} (trial {best.number}), " if best else ""
        total = self.study.sweep.trials
        return f"{reached}{total - left} of {total} trials done{self._eta(left)}"

    def table(self) -> "Table":
        """Return the trials that run and the newest of the others as a table."""
        from rich.table import Table

        sweep = self.study.sweep
        keys = list(sweep.space)
        table = Table(title=self.summary(self.study.remaining()), caption=f"sweep {self.study.name}")
        for column in ("trial", "state", *keys, sweep.objectives[0], "validation", "images/s"):
            table.add_column(column, justify="left" if column in ("state", *keys) else "right")
        for trial in visible_trials(self.study.trials(), self.running):
            table.add_row(*self._row(trial, keys))
        return table

    def _row(self, trial: Any, keys: list[str]) -> list[str]:
        moving = self.running.get(trial.number)
        values = trial.values or list(trial.intermediate_values.values())[-1:]
        rung = moving.rung if moving else rung_of(trial)
        return [
            str(trial.number),
            trial.state.name if moving is None else "RUNNING",
            *(format_value(trial.params.get(key, "")) for key in keys),
            f"{values[0]:.4g}" if values else "",
            f"{rung}/{self.study.sweep.evaluations}",
            f"{moving.rate:.0f}" if moving and moving.rate else "",
        ]

    def _eta(self, left: int) -> str:
        if not self.took or not left:
            return ""
        side_by_side = max(1, len(self.running))
        return f", {left * sum(self.took) / len(self.took) / side_by_side / 60:.0f} min left"

    def _show(self, line: str = "") -> None:
        if self.live is not None:
            self.live.update(self.table(), refresh=True)
        elif line:
            say(line)


def visible_trials(trials: Any, running: dict[int, RunningTrial]) -> list[Any]:
    """Return the trials that the live table has room for: all that run, and the newest of the others."""
    others = [one for one in trials if one.number not in running]
    room = max(0, SHOWN - len(running))
    kept = {one.number for one in others[len(others) - min(room, len(others)) :]} | set(running)
    return [one for one in trials if one.number in kept]


def as_overrides(params: dict[str, Any]) -> str:
    """Return parameters as the command line has them."""
    return " ".join(f"{key}={format_value(value)}" for key, value in params.items())


def format_value(value: object) -> str:
    """Return a value with as many digits as one reads."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)

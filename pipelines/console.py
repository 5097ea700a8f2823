"""Progress of long work: a rich bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_INTERVAL = 10.0  # seconds between two plain lines


class Advance(Protocol):
    """What ``progress`` hands out: call it after each piece of work."""

    def __call__(self, amount: float = 1, note: str = "") -> None:
        """Count ``amount`` more units as done; ``note`` replaces the text at the end of the line."""


@contextmanager
def progress(title: str, total: float | None, unit: str = "images", done: float = 0) -> Iterator[Advance]:
    """Show the progress of one piece of work on standard error.

    Args:
        title: what is being done, e.g. "shard kodak".
        total: how many units there are, None where nobody knows.
        unit: their name in the plural; "bytes" are shown as MB.
        done: units that an earlier attempt finished (they do not count in the rate).
    """
    bar = _bar if sys.stderr.isatty() else _lines
    with bar(title, total, unit, done) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: float | None, unit: str, done: float) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn(unit), TextColumn("{task.fields[rate]}")]
    if unit == "bytes":
        counts = [DownloadColumn(), TransferSpeedColumn()]
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total, completed=int(done), rate="", note="")

        def advance(amount: float = 1, note: str = "") -> None:
            shown.advance(task, amount)
            speed = shown.tasks[task].speed
            rate = f"{speed:.1f}/s" if speed else ""
            shown.update(task, rate=rate, note=note or shown.tasks[task].fields["note"])

        yield advance


@contextmanager
def _lines(title: str, total: float | None, unit: str, done: float) -> Iterator[Advance]:
    start = last = time.monotonic()
    counted, latest = done, ""
    scale, name = (1e6, "MB") if unit == "bytes" else (1, unit)

    def line() -> str:
        elapsed = max(time.monotonic() - start, 1e-9)
        rate = (counted - done) / elapsed
        of_total = f"/{total / scale:g}" if total else ""
        eta = f", {(total - counted) / rate:.0f} s left" if total and rate and counted < total else ""
        return f"{title}: {counted / scale:g}{of_total} {name}, {rate / scale:.1f} {name}/s{eta} {latest}".rstrip()

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal counted, last, latest
        counted, latest = counted + amount, note or latest
        if time.monotonic() - last >= PLAIN_INTERVAL:
            last = time.monotonic()
            print(line(), file=sys.stderr, flush=True)

    yield advance
    print(line(), file=sys.stderr, flush=True)


def say(sentence: str) -> None:
    """Print a sentence about what is going on, on standard error."""
    print(sentence, file=sys.stderr, flush=True)

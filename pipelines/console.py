"""Progress of long work: a rich bar on a terminal, a plain line from time to time in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from denoise.printable import printable
from denoise.redaction import without_passwords

PLAIN_INTERVAL = 10.0  # seconds between two plain lines


class Advance(Protocol):
    """The function that ``progress`` hands out: call it after each piece of work."""

    def __call__(self, amount: float = 1, note: str = "") -> None:
        """Count ``amount`` more units as done; ``note`` replaces the text at the end of the line."""


@contextmanager
def progress(title: str, total: float | None, unit: str = "images", done: float = 0) -> Iterator[Advance]:
    """Show the progress of one piece of work on standard error.

    Args:
        title: what is being done, e.g. "shard kodak".
        total: how many units there are, None if unknown.
        unit: their name in the plural; "bytes" are shown as MB.
        done: units that an earlier attempt has finished (they do not count in the rate).
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),  # the name of a file may look like markup
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=int(done), rate="", note="")

        def advance(amount: float = 1, note: str = "") -> None:
            bar.advance(task, amount)
            speed = bar.tasks[task].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bar.update(task, rate=rate, note=printable(note) or bar.tasks[task].fields["note"])

        yield advance


@contextmanager
def _lines(title: str, total: float | None, unit: str, done: float) -> Iterator[Advance]:
    start = last_print = time.monotonic()
    count, last_note = done, ""
    scale, name = (1e6, "MB") if unit == "bytes" else (1, unit)

    def line() -> str:
        elapsed = max(time.monotonic() - start, 1e-9)
        rate = (count - done) / elapsed
        of_total = f"/{total / scale:g}" if total else ""
        eta = f", {(total - count) / rate:.0f} s left" if total and rate and count < total else ""
        return f"{title}: {count / scale:g}{of_total} {name}, {rate / scale:.1f} {name}/s{eta} {last_note}".rstrip()

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal count, last_print, last_note
        count, last_note = count + amount, printable(note) or last_note
        if time.monotonic() - last_print >= PLAIN_INTERVAL:
            last_print = time.monotonic()
            print(line(), file=sys.stderr, flush=True)

    yield advance
    print(line(), file=sys.stderr, flush=True)


def say(message: str) -> None:
    """Print a message on standard error, without the passwords of addresses and the escape codes of names in it."""
    print(printable(without_passwords(message), keep="\n"), file=sys.stderr, flush=True)


class StreamWithoutPasswords:
    """A text stream that writes to another one, without the passwords of addresses."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without the passwords in it."""
        return self._stream.write(without_passwords(text))

    def __getattr__(self, name: str) -> Any:
        """Return the other stream's attribute: its encoding, whether it is a terminal, ..."""
        return getattr(self._stream, name)

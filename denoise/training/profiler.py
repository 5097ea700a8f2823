"""Profiles some training steps: a timeline, and a page with a table that opens in any browser."""

import html
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARMUP, STEPS = 5, 10  # steps before the profile starts, and steps that it covers
ROWS = 40  # of the table
TRACE, PAGE = "trace.json", "profile.html"

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Profile</title>
<style>body{font:15px sans-serif;margin:2em auto;max-width:72em}td,th{padding:.2em .8em;text-align:right}
td:first-child,th:first-child{text-align:left;font-family:monospace}tr:nth-child(even){background:#f3f3f3}</style>
"""


def profiled(steps: Iterable[int], folder: Path | None) -> Iterator[int]:
    """Yield the steps; profile ten of them, after the first five, into ``folder`` unless that is None.

    ``profile.html`` shows which operations took the time; ``trace.json`` is the timeline, for chrome://tracing or
    ui.perfetto.dev.
    """
    if folder is None:
        yield from steps
        return
    with _profiler(folder) as profiler:
        for step in steps:
            yield step
            profiler.step()


def _profiler(folder: Path) -> AbstractContextManager[Any]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    phases = schedule(wait=0, warmup=WARMUP, active=STEPS, repeat=1)
    return profile(activities=activities, schedule=phases, on_trace_ready=lambda profiler: _write(profiler, folder))


def _write(profiler: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / TRACE))
    (folder / PAGE).write_text(_page(profiler.key_averages()), encoding="utf-8")


def _page(operations: Iterable[Any]) -> str:
    """Return a page with the operations that took the most time themselves, on the GPU if there is one."""
    on_gpu = torch.cuda.is_available()
    times = [
        (row.self_device_time_total if on_gpu else row.self_cpu_time_total, row.key, row.count) for row in operations
    ]
    total = sum(time for time, _, _ in times) or 1
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{time / 1000 / STEPS:.2f}</td><td>{100 * time / total:.1f}</td>"
        f"<td>{count / STEPS:g}</td></tr>\n"
        for time, name, count in sorted(times, reverse=True)[:ROWS]
    )
    device = "GPU" if on_gpu else "CPU"
    return (
        f"{HEAD}<h1>{STEPS} training steps: {total / 1000 / STEPS:.1f} ms of {device} time each</h1>"
        f"<p>The timeline is in <code>{TRACE}</code>: open it in chrome://tracing or ui.perfetto.dev.</p>"
        f"<table><tr><th>operation</th><th>ms a step</th><th>%</th><th>calls a step</th></tr>\n{rows}</table></html>\n"
    )

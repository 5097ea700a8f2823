"""Training curves: as SVG for the page, coloured by its style sheet, and as one PNG figure."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

from pipelines.report.inputs import Training

T = TypeVar("T")
Points = list[tuple[float, float]]
Band = list[tuple[float, float, float]]  # x, low, high

WIDTH, HEIGHT = 480, 300  # of a chart, in the units of its viewBox
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 10, 40  # margins
MAX_POINTS = 400  # of a drawn line
LEAST = 1e-30  # on a logarithmic axis
LOG_FROM = 8.0  # a loss that spans this factor is drawn on a logarithmic axis
WHOLE = 0.0, 1.0  # shares of the ranked values between which the y axis runs
COLOURS = ("#1f5a96", "#b4531a", "#2c7a4b", "#7a4a9c", "#806600", "#a02c5a", "#22707f", "#55595f")


@dataclass(frozen=True)
class Curve:
    """One method's line: what was logged, and the line to read."""

    name: str
    colour: int  # index into the palette
    logged: Points
    smooth: Points
    band: Band = field(default_factory=list)  # around the line, e.g. from the least to the largest of several trainings
    dash: int = 0  # pattern of the line, for more lines than colours


@dataclass(frozen=True)
class Chart:
    """What the page's template draws: lines, ticks and dots in the units of the viewBox."""

    title: str
    unit: str
    log: bool
    lines: list[dict[str, object]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    table: list[tuple[str, list[str]]]  # step, one figure a method
    axis: str = "step"  # what x is
    cut: bool = False  # whether lines leave the y axis


def make_curves(trainings: Sequence[Training], key: str) -> list[Curve]:
    """Return a line for every training that logged ``key``; the loss, noisy from step to step, gets a running mean."""
    curves = []
    for colour, training in enumerate(trainings):
        if series := training.series(key):
            window = max(1, len(series) // 15) if key == "loss" else 1
            smooth = thin(running_mean(series, window))
            curves.append(Curve(training.name, colour % len(COLOURS), thin(series) if window > 1 else [], smooth))
    return curves


def draw_chart(
    curves: Sequence[Curve], title: str, unit: str, axis: str = "step", shown: tuple[float, float] = WHOLE
) -> Chart | None:
    """Return the drawing of the curves, or None where there are none.

    Args:
        curves: one line each.
        title: of the chart.
        unit: of y.
        axis: what x is; a step is a whole number.
        shown: the shares of the ranked values between which the y axis runs, e.g. (0.05, 1) for the 5th to the 100th
            percentile.
    """
    if not curves:
        return None
    values = _between(_values(curves), *shown)
    log = use_log(values)
    steps = [step for curve in curves for step, _ in curve.smooth]
    x_low, x_high = min(steps), max(steps)
    x_low = 0 if x_low < 0.2 * x_high else x_low
    y_low, y_high, y_values = _axis(values, log)
    scale = _Scale((x_low, x_high), (y_low, y_high), log)
    lines = [_line(curve, scale, axis, unit) for curve in curves]
    x_ticks = [
        (scale.x(step), f"{step:,.0f}" if step == int(step) else f"{step:g}")
        for step in _round_values(x_low, x_high, 6)
        if step == int(step) or axis != "step"
    ]
    y_ticks = [(scale.y(value), f"{value:g}") for value in y_values]
    return Chart(title, unit, log, lines, x_ticks, y_ticks, _table(curves), axis, shown != WHOLE)


@dataclass(frozen=True)
class _Scale:
    """From what the axes show to the units of the viewBox."""

    across: tuple[float, float]
    up: tuple[float, float]
    log: bool

    def x(self, step: float) -> float:
        low, high = self.across
        share = (step - low) / (high - low) if high > low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.up
        if self.log:  # a value that is cut off may not be positive
            low, high, value = (math.log(max(number, LEAST)) for number in (low, high, value))
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def draw(self, points: Points) -> str:
        return " ".join(f"{self.x(step):g},{self.y(value):g}" for step, value in points)


def _line(curve: Curve, scale: _Scale, axis: str, unit: str) -> dict[str, object]:
    """Return a curve as the page's template draws it."""
    around = [(at, low) for at, low, _ in curve.band] + [(at, high) for at, _, high in curve.band[::-1]]
    return {
        "name": curve.name,
        "colour": curve.colour,
        "dash": curve.dash,
        "band": scale.draw(around),
        "logged": scale.draw(curve.logged),
        "smooth": scale.draw(curve.smooth),
        "dots": [
            (scale.x(step), scale.y(value), f"{curve.name}, {axis} {step:g}: {value:.4g} {unit}".strip())
            for step, value in curve.smooth
            if len(curve.smooth) <= 40
        ],
    }


def use_log(values: Sequence[float]) -> bool:
    """Return whether the values are positive and so far apart that only a logarithmic axis shows them all."""
    return min(values) > 0 and max(values) / min(values) > LOG_FROM


def curves_figure(loss: Sequence[Curve], psnr: Sequence[Curve]) -> bytes:
    """Return a PNG with the training loss and the validation PSNR by step, one line a method."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    labels = "training loss", "validation PSNR (dB)"
    buffer = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()  # the same image whatever the user's own settings are
        sheet = Figure(figsize=(10, 3.8), dpi=120, layout=ConstrainedLayoutEngine(wspace=0.06))
        FigureCanvasAgg(sheet)
        for axes, curves, label in zip(sheet.subplots(1, 2), (loss, psnr), labels, strict=True):
            axes.set(xlabel="step", ylabel=label)
            axes.grid(color="#d9dce0", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            _plot(axes, curves)
        sheet.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plot(axes: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        colour = COLOURS[curve.colour]
        if curve.logged:
            axes.plot(*zip(*curve.logged, strict=True), color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(*zip(*curve.smooth, strict=True), color=colour, linewidth=1.6, label=curve.name)
    if curves:
        axes.set_xlim(left=0)
        axes.legend(frameon=False)
        axes.set_yscale("log" if use_log(_values(curves)) else "linear")


def _values(curves: Sequence[Curve]) -> list[float]:
    lines = [value for curve in curves for _, value in (*curve.logged, *curve.smooth)]
    return lines + [value for curve in curves for _, *ends in curve.band for value in ends]


def _between(values: Sequence[float], low: float, high: float) -> list[float]:
    """Return the values between two shares of all, ranked; at least one."""
    ranked = sorted(values)
    return ranked[int(low * (len(ranked) - 1)) : math.ceil(high * (len(ranked) - 1)) + 1]


def _table(curves: Sequence[Curve]) -> list[tuple[str, list[str]]]:
    """Return about 16 steps of the lines as text, for those who cannot see the drawing."""
    lines = [dict(curve.smooth) for curve in curves]
    steps = sorted(set().union(*lines))
    stride = max(1, math.ceil(len(steps) / 16))
    chosen = sorted({*steps[::stride], steps[-1]})
    return [(f"{step:,.0f}", [f"{line[step]:.4g}" if step in line else "–" for line in lines]) for step in chosen]


def running_mean(series: Points, window: int) -> Points:
    """Return the mean over ``window`` logged values around each step (fewer at both ends)."""
    if window == 1:
        return series
    sums = [0.0, *accumulate(value for _, value in series)]
    means = []
    for index, (step, _) in enumerate(series):
        first, last = max(0, index - window // 2), min(len(series), index - window // 2 + window)
        means.append((step, (sums[last] - sums[first]) / (last - first)))
    return means


def thin(series: list[T]) -> list[T]:
    """Return at most ``MAX_POINTS`` of the points, the first and the last among them."""
    if len(series) <= MAX_POINTS:
        return series
    return [series[round(index * (len(series) - 1) / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


def _axis(values: Sequence[float], log: bool) -> tuple[float, float, list[float]]:
    """Return the ends of the y axis and the round values to label."""
    low, high = min(values), max(values)
    if not log:
        margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
        low, high = low - margin, high + margin
        return low, high, _round_values(low, high, 6)
    low, high = low / 1.1, high * 1.1
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    return (
        low,
        high,
        [float(f"{factor}e{power}") for power in decades for factor in factors if low <= factor * 10.0**power <= high],
    )


def _round_values(low: float, high: float, most: int) -> list[float]:
    """Return at most about ``most`` values, 1, 2 or 5 times a power of ten apart, that cover low..high."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * power) <= most)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]

"""Training curves of a study: one line a row, over steps, epochs, images and hours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.report.curves import COLOURS, Chart, Curve, draw_chart, thin
from pipelines.studies.report.rows import cells_by_row, trainings
from pipelines.studies.results import StudyRun, Training

DASHES = 4  # patterns of lines, after all colours have been used
UPPER, LOWER = (0.05, 1.0), (0.0, 0.95)  # what of the ranked values the y axis shows

# Name of an axis -> the number of what, for a row of a training's history; KeyError where it was not logged.
AXES: Mapping[str, tuple[str, Callable[[Training, Mapping[str, float]], float]]] = {
    "steps": ("step", lambda training, row: row["step"]),
    "epochs": ("epoch", lambda training, row: row["step"] * training.batch_size / max(1, training.train_images)),
    "images": ("images", lambda training, row: row["step"] * training.batch_size),
    "hours": ("hours", lambda training, row: row["seconds"] / 3600),
}
# Key of a history -> title, unit, and what of the values is shown: the beginning of training is cut off.
CHARTS = {
    "val_psnr": ("Validation PSNR", "dB", UPPER),
    "val_ssim": ("Validation SSIM", "", UPPER),
    "loss": ("Loss, as trained", "", LOWER),
    "val_mse": ("Validation loss against clean: mean squared error", "", LOWER),
    "train_psnr": ("PSNR of training crops", "dB", UPPER),
}


@dataclass(frozen=True)
class Line:
    """The rows that one line stands for, since they share their trainings, and how it is drawn."""

    name: str
    colour: int
    dash: int
    trainings: tuple[Training, ...]  # one a seed


def lines(run: StudyRun) -> list[Line]:
    """Return a line for every row that was trained; rows that score the same trainings share one."""
    groups: dict[tuple[str, ...], tuple[list[str], tuple[Training, ...]]] = {}
    for row, cells in cells_by_row(run).items():
        if of_row := tuple(trainings(cells)):
            groups.setdefault(tuple(training.run for training in of_row), ([], of_row))[0].append(row)
    return [
        Line("; ".join(rows), number % len(COLOURS), number // len(COLOURS) % DASHES, of_rows)
        for number, (rows, of_rows) in enumerate(groups.values())
    ]


def draw_curves(drawn: Sequence[Line]) -> dict[str, list[Chart]]:
    """Return the charts over each axis that has any."""
    charts = {}
    for axis, (name, x) in AXES.items():
        found = []
        for key, (title, unit, shown) in CHARTS.items():
            curves = [curve for line in drawn if (curve := _curve(line, key, x))]
            if chart := draw_chart(curves, title, unit, name, shown):
                found.append(chart)
        if found:
            charts[axis] = found
    return charts


def _curve(line: Line, key: str, x: Callable[[Training, Mapping[str, float]], float]) -> Curve | None:
    """Return the mean over the seeds, and around it the least and the largest of them."""
    band = thin(_band([_series(training, key, x) for training in line.trainings]))
    if not band:
        return None
    several = len(line.trainings) > 1
    ends = [(at, low, high) for at, _, low, high in band] if several else []
    return Curve(line.name, line.colour, [], [(at, mean) for at, mean, _, _ in band], ends, line.dash)


def _series(
    training: Training, key: str, x: Callable[[Training, Mapping[str, float]], float]
) -> dict[float, tuple[float, float]]:
    """Return (x, value) by step, of the rows that hold both."""
    series = {}
    for row in training.history:
        try:
            series[row["step"]] = (x(training, row), row[key])
        except (KeyError, TypeError):  # not logged, or null
            continue
    return {step: point for step, point in series.items() if point[1] is not None}


def _band(series: Sequence[dict[float, tuple[float, float]]]) -> list[tuple[float, float, float, float]]:
    """Return x, mean, least and largest value at the steps that all series have."""
    filled = [points for points in series if points]
    if not filled:
        return []
    steps = sorted(set(filled[0]).intersection(*filled[1:]))
    band = []
    for step in steps:
        points = [of_seed[step] for of_seed in filled]
        values = [value for _, value in points]
        x = sum(at for at, _ in points) / len(points)
        band.append((x, sum(values) / len(values), min(values), max(values)))
    return band

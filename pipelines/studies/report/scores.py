"""The table of a study: our figures beside the published ones, and the other scores of each row."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipelines.studies.figures import FIGURES, LEVELS, MissingFigureError, mean_score, training
from pipelines.studies.report.rows import cells_by_row, definition_rows, scored_sets, sources, values
from pipelines.studies.report.tables import NONE, Column, Table, spread
from pipelines.studies.results import Cell, StudyRun
from pipelines.studies.statistics import mean_and_deviation

AVERAGE = "average"
EPOCH = re.compile(r"epoch (\d+(?:\.\d+)?)")  # a published figure of the validation after so many epochs
EPOCH_TOLERANCE = 0.1  # share by which the epoch of our nearest validation may differ from the published one
OTHERS = (  # heading, figure, digits: of all test sets together and of each
    ("input PSNR", "noisy_psnr", 2, 1.0),
    ("SSIM", "ssim", 4, 1.0),
    ("SSIM, 7x7 window", "ssim_uniform", 4, 1.0),
    ("bias", "bias", 2, LEVELS),
)


def score_table(run: StudyRun, others: bool = True) -> Table:
    """Return one line a row: PSNR on each test set and its mean, ours and published, then (``others``) other scores."""
    further = OTHERS if others else ()
    sets, rows, cells = scored_sets(run), definition_rows(run), cells_by_row(run)
    published = {row: rows.get(row, {}).get("published", {}) for row in run.rows}
    names = _columns(sets, published)
    labels = {name: _labels(run, published, name) for name in names}
    columns = [Column("row", number=False)]
    for name in names:
        columns += [Column("ours", name), *(Column(label, name) for label in labels[name])]
    columns += [Column(heading) for heading, *_ in further]
    lines = []
    for row in run.rows:
        line = [row]
        for name in names:
            ours = values(cells[row], partial(_ours, name=name, sets=sets))
            failed = not ours and (name in (*sets, AVERAGE) or not sets) and any(cell.failure for cell in cells[row])
            line.append("failed" if failed else spread(ours, 2))
            for label in labels[name]:
                line.append(_published(published[row].get(label, {}), name, ours, sets))
        line += [_other(cells[row], key, digits, scale) for _, key, digits, scale in further]
        lines.append((*line, _seeds(run, cells[row])))
    return Table((*columns, Column("seeds")), tuple(lines))


def set_table(run: StudyRun) -> Table | None:
    """Return the scores of every row on each test set by itself, None where there is only one."""
    sets, cells = scored_sets(run), cells_by_row(run)
    if len(sets) < 2:
        return None
    columns = [Column("row", number=False)]
    for data in sets:
        columns += [Column(heading, data) for heading in ("gain", *(heading for heading, *_ in OTHERS))]
    lines = []
    for row in run.rows:
        line = [row]
        for data in sets:
            line.append(spread(values(cells[row], partial(FIGURES["gain"], data=data)), 2, signed=True))
            line += [_other(cells[row], key, digits, scale, data) for _, key, digits, scale in OTHERS]
        lines.append(tuple(line))
    return Table(tuple(columns), tuple(lines)).without_empty_columns()


def _columns(sets: Sequence[str], published: Mapping[str, Any]) -> list[str]:
    """Return the headings of the columns of PSNR: test sets, those with published figures only, the average last."""
    others = [name for labels in published.values() for figures in labels.values() for name in figures]
    names = dict.fromkeys([*sets, *others])
    average = AVERAGE in names or len(sets) > 1
    epochs = sorted((name for name in names if EPOCH.fullmatch(name)), key=lambda name: float(name.split()[1]))
    return [*(name for name in names if name != AVERAGE and name not in epochs), *[AVERAGE] * average, *epochs]


def _labels(run: StudyRun, published: Mapping[str, Any], name: str) -> list[str]:
    """Return the sources that have a figure in a column."""
    return [label for label in sources(run) if any(name in labels.get(label, {}) for labels in published.values())]


def _ours(cell: Cell, name: str, sets: Sequence[str]) -> float:
    """Return a cell's PSNR in a column.

    Raises:
        MissingFigureError: it has none.
    """
    if name in sets:
        return mean_score(cell, "psnr", name)
    if name == AVERAGE:
        return mean_score(cell, "psnr")
    if match := EPOCH.fullmatch(name):
        return _validated(cell, float(match[1]))
    raise MissingFigureError(f"{cell.row} was not scored on {name}")


def _validated(cell: Cell, epoch: float) -> float:
    """Return the PSNR of the validation nearest to the end of an epoch."""
    of = training(cell)
    epochs = {
        row["step"] * of.batch_size / max(1, of.train_images): row["val_psnr"]
        for row in of.history
        if row.get("val_psnr") is not None
    }
    nearest = min(epochs, key=lambda number: abs(number - epoch), default=None)
    if nearest is None or abs(nearest - epoch) > EPOCH_TOLERANCE * max(1.0, epoch):
        raise MissingFigureError(f"{cell.row} was not validated after epoch {epoch:g}")
    return epochs[nearest]


def _published(figures: Mapping[str, Any], name: str, ours: Sequence[float], sets: Sequence[str]) -> str:
    """Return a published figure, followed by our distance from it where both are of the same images."""
    figure = figures.get(name)
    if figure is None:
        return NONE
    psnr, *ssim = figure if isinstance(figure, list | tuple) else [figure]
    text = " / ".join([f"{psnr:.2f}", *(f"{number:.3f}" for number in ssim)])
    averaged = {other for other in figures if other != AVERAGE and not EPOCH.fullmatch(other)}
    comparable = not averaged or name != AVERAGE or averaged == set(sets)
    if EPOCH.fullmatch(name):  # where other images stand in for the published test set, they do for its validation
        comparable = averaged <= set(sets)
    return f"{text} ({mean_and_deviation(ours)[0] - psnr:+.2f})" if ours and comparable else text


def _other(cells: Sequence[Cell], key: str, digits: int, scale: float, data: str | None = None) -> str:
    return spread(values(cells, lambda cell: scale * mean_score(cell, key, data)), digits, signed=key == "bias")


def _seeds(run: StudyRun, cells: Sequence[Cell]) -> str:
    """Return how many of the seeds have a result."""
    failed = sum(bool(cell.failure) for cell in cells)
    text = f"{len(cells) - failed} of {len(run.seeds)}"
    return f"{text}, {failed} failed" if failed else text

"""Paired differences of a study's rows from its first one, with their intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.studies.figures import MissingFigureError, image_scores, mean_score
from pipelines.studies.report.rows import cells_by_row
from pipelines.studies.report.tables import NONE, Column, Table
from pipelines.studies.results import Cell, StudyRun
from pipelines.studies.statistics import interval, mean_and_deviation

ONE_SEED = "leaves out the noise of training"


@dataclass(frozen=True)
class Difference:
    """How much higher the PSNR of a row is than that of another, in dB, with a 95 % interval if that can be told."""

    mean: float
    interval: tuple[float, float] | None
    over: str  # the pairs, in words

    @property
    def outcome(self) -> str:
        """Whether the interval leaves 0 out, in words."""
        if self.interval is None:
            return NONE
        low, high = self.interval
        if low > 0 or high < 0:
            return "higher" if low > 0 else "lower"
        return "equal" if low == high == 0 else "not resolved"


def difference(ours: Mapping[int, Cell], reference: Mapping[int, Cell]) -> Difference | None:
    """Return the mean PSNR difference of one row from another, None where no seed has both.

    With two seeds or more the pairs are seeds, each the mean over the test sets that both were scored on. With one
    they are the images of these sets, so that the interval says nothing of another training.

    Args:
        ours: the cells of the row, by seed.
        reference: those of the other row.
    """
    pairs = [(ours[seed], reference[seed]) for seed in ours if seed in reference]
    warning = "; scored on another noise" if any(_noises_differ(*pair) for pair in pairs) else ""
    by_seed = [mean for pair in pairs if (mean := _mean_difference(*pair)) is not None]
    if len(by_seed) > 1:
        return Difference(mean_and_deviation(by_seed)[0], interval(by_seed), f"{len(by_seed)} seeds{warning}")
    for first, second in pairs:
        scores, others = image_scores(first), image_scores(second)
        by_image = [scores[image] - others[image] for image in scores if image in others]
        if by_image:
            count = f"{len(by_image)} image{'s' * (len(by_image) > 1)} of one seed: {ONE_SEED}{warning}"
            ends = interval(by_image) if len(by_image) > 1 else None
            return Difference(mean_and_deviation(by_image)[0], ends, count)
    return None


def difference_table(run: StudyRun) -> Table | None:
    """Return the difference of every row from the first, None where the study has only one row."""
    if len(run.rows) < 2:
        return None
    cells = {row: {cell.seed: cell for cell in group} for row, group in cells_by_row(run).items()}
    reference, *others = run.rows
    columns = (
        Column("row", number=False),
        *(Column("difference, dB"), Column("95 % interval")),
        *(Column(f"against {reference}", number=False), Column("over", number=False)),
    )
    return Table(columns, tuple((row, *_texts(difference(cells[row], cells[reference]))) for row in others))


def _mean_difference(cell: Cell, other: Cell) -> float | None:
    """Return the mean difference over the test sets that both cells were scored on."""
    shared = [data for data in cell.scores if data in other.scores]
    try:
        differences = [mean_score(cell, "psnr", data) - mean_score(other, "psnr", data) for data in shared]
    except MissingFigureError:
        return None
    return mean_and_deviation(differences)[0] if differences else None


def _noises_differ(cell: Cell, other: Cell) -> bool:
    return any(
        cell.scores[data].get("noise") != other.scores[data].get("noise") for data in cell.scores.keys() & other.scores
    )


def _texts(found: Difference | None) -> tuple[str, ...]:
    if found is None:
        return (NONE,) * 4
    ends = f"{found.interval[0]:+.3f} to {found.interval[1]:+.3f}" if found.interval else NONE
    return f"{found.mean:+.3f}", ends, found.outcome, found.over

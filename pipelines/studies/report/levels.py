"""Estimated against true sigma of the test images, for methods that estimate it."""

from collections.abc import Sequence

from pipelines.studies.figures import LEVELS
from pipelines.studies.report.rows import cells_by_row, image_means, scored_sets
from pipelines.studies.report.tables import NONE, Column, Table
from pipelines.studies.results import StudyRun
from pipelines.studies.statistics import mean_and_deviation

ESTIMATED, TRUE = "estimated_sigma", "sigma"  # of an image, in the noise's own unit: [0, 1] for Gaussian noise


def sigma_table(run: StudyRun) -> Table | None:
    """Return how well each row estimates sigma on each test set, in 255ths for Gaussian noise; None where none does."""
    lines = []
    for row, cells in cells_by_row(run).items():
        estimated, true = image_means(cells, ESTIMATED), image_means(cells, TRUE)
        noises = {data: str(scores.get("noise")) for cell in cells for data, scores in cell.scores.items()}
        for data in scored_sets(run):
            scale = LEVELS if "gauss" in noises.get(data, "") else 1
            shared = [image for image in estimated if image in true and image[0] == data]
            pairs = [(scale * estimated[image], scale * true[image]) for image in shared]
            if pairs:
                lines.append((row, data, *_texts(pairs)))
    if not lines:
        return None
    numbers = ("images", "estimated", "true", "mean error", "worst error", "rank correlation")
    columns = (Column("row", number=False), Column("test set", number=False), *map(Column, numbers))
    return Table(columns, tuple(lines))


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Spearman's rank correlation of pairs, None where one side does not vary."""
    from scipy.stats import spearmanr

    first, second = zip(*pairs, strict=True)
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def _texts(pairs: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    errors = [estimated - true for estimated, true in pairs]
    correlation = rank_correlation(pairs)
    means = [mean_and_deviation(side)[0] for side in (*zip(*pairs, strict=True), errors)]
    return (
        str(len(pairs)),
        *(f"{means[0]:.2f}", f"{means[1]:.2f}", f"{means[2]:+.2f}", f"{max(errors, key=abs):+.2f}"),
        NONE if correlation is None else f"{correlation:.3f}",
    )

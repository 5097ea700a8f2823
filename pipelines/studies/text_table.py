"""The table of a study as plain text, for a terminal."""

from pipelines.studies.figures import MissingFigureError, mean_score
from pipelines.studies.results import Cell, StudyRun
from pipelines.studies.statistics import mean_and_deviation


def text_table(run: StudyRun) -> str:
    """Return the table as aligned text."""
    return _aligned(table_lines(run))


def table_lines(run: StudyRun) -> list[list[str]]:
    """Return a heading and a line for each row: its mean PSNR in dB and deviation on each set, and published figures.

    A column that would be empty is left out.
    """
    sets = list(dict.fromkeys(name for cell in run.cells for name in cell.scores))
    labels = list(run.definition.get("sources", {}))
    heading = ["row", *(f"{name} noisy, dB" for name in sets), *(f"{name} PSNR, dB" for name in sets)]
    lines = [[*heading, *(f"{label}: {name}" for label in labels for name in sets)]]
    published = {row["name"]: row.get("published", {}) for row in run.definition.get("rows", ())}
    for row in run.rows:
        cells = [cell for cell in run.cells if cell.row == row]
        figures = published.get(row, {})
        lines.append(
            [
                row,
                *(_mean(cells, "noisy_psnr", name) for name in sets),
                *(_mean(cells, "psnr", name) for name in sets),
                *(_published(figures.get(label, {}).get(name)) for label in labels for name in sets),
            ]
        )
    used = [column for column in range(len(lines[0])) if column == 0 or any(line[column] != "–" for line in lines[1:])]
    return [[line[column] for column in used] for line in lines]


def _mean(cells: list[Cell], key: str, data: str) -> str:
    values = []
    for cell in cells:
        try:
            values.append(mean_score(cell, key, data))
        except MissingFigureError:
            if cell.failure:
                return "failed"
    if not values:
        return "–"
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def _published(figure: object) -> str:
    if isinstance(figure, list | tuple):
        return f"{figure[0]:.2f}/{figure[1]:.3f}"
    return f"{figure:.2f}" if isinstance(figure, int | float) else "–"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([texts[0], "  ".join("-" * width for width in widths), *texts[1:]])

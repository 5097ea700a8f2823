"""Tables of texts, which the page and the Markdown file both show."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipelines.studies.statistics import mean_and_deviation

NONE = "–"  # what a cell shows that has no figure


@dataclass(frozen=True)
class Column:
    """The heading of a column, below that of a group of columns if it belongs to one."""

    label: str
    group: str = ""
    number: bool = True  # aligned to the right


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings above the columns, with the number of columns of each; none where no column has one."""
        if not any(column.group for column in self.columns):
            return []
        return [(group, len(list(columns))) for group, columns in groupby(column.group for column in self.columns)]

    def without_empty_columns(self) -> "Table":
        """Return the table without columns that show nothing in any row."""
        used = [index for index in range(1, len(self.columns)) if any(row[index] != NONE for row in self.rows)]
        return self._columns(used)

    def only(self, labels: Collection[str]) -> "Table":
        """Return the table with the columns of some labels beside the first, without the others."""
        return self._columns([index for index, column in enumerate(self.columns) if index and column.label in labels])

    def without_shared(self) -> tuple["Table", list[tuple[str, str]]]:
        """Return the table of what differs, and as (label, text) what all rows that have it share."""
        shared, kept = [], []
        for index, column in enumerate(self.columns[1:], 1):
            texts = {row[index] for row in self.rows} - {NONE}
            if len(texts) == 1 and len(self.rows) > 1:
                shared.append((column.label, texts.pop()))
            elif texts:
                kept.append(index)
        return self._columns(kept), shared

    def _columns(self, indices: Sequence[int]) -> "Table":
        """Return the table of the first column and some others."""
        kept = [0, *indices]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return Table(tuple(self.columns[index] for index in kept), rows)


def spread(values: Sequence[float], digits: int, signed: bool = False) -> str:
    """Return the mean of the values, with their standard deviation where there are several."""
    if not values:
        return NONE
    mean, deviation = mean_and_deviation(values)
    text = f"{mean:{'+' * signed}.{digits}f}"
    return f"{text} ± {deviation:.{digits}f}" if deviation is not None else text

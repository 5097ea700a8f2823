"""The table of a study as plain text, for a terminal."""

from pipelines.report.write import aligned
from pipelines.studies.report.scores import score_table
from pipelines.studies.results import StudyRun


def text_table(run: StudyRun) -> str:
    """Return one line a row: PSNR in dB, ours and published, without columns that would be empty."""
    table = score_table(run, others=False).without_empty_columns()
    heading = [f"{column.group} {column.label}".strip() for column in table.columns]
    return aligned([heading, *table.rows], [column.number for column in table.columns])

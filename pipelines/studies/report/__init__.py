"""The report of a study: one page, and the same tables as Markdown."""

from pipelines.studies.report.write import write_study_report

__all__ = ["write_study_report"]

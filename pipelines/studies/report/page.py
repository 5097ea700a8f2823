"""The page of a study's report: fill its template."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

from pipelines.report.curves import Chart
from pipelines.report.template import page_template
from pipelines.studies.report.content import (
    COST_NOTE,
    DIFFERENCE_NOTE,
    IMAGE_NOTE,
    SCORE_NOTES,
    SIGMA_NOTE,
    Content,
)
from pipelines.studies.report.curves import Line
from pipelines.studies.report.histograms import Histograms
from pipelines.studies.report.images import Embedded, Strip


def render(
    content: Content,
    lines: Sequence[Line],
    charts: Mapping[str, Sequence[Chart]],
    histograms: Sequence[Histograms],
    extremes: Mapping[str, Sequence[Embedded]],
    strips: Sequence[Strip],
) -> str:
    """Return the page as HTML that needs no other file; the same input gives the same text."""
    return page_template("study.html.jinja", "pipelines.studies.report").render(
        **{field.name: getattr(content, field.name) for field in fields(content)},
        lines=lines,
        charts=charts,
        histograms=histograms,
        extremes=extremes,
        strips=strips,
        score_notes=SCORE_NOTES,
        difference_note=f"{DIFFERENCE_NOTE} {IMAGE_NOTE}",
        cost_note=COST_NOTE,
        sigma_note=SIGMA_NOTE,
    )

"""The report of a study as Markdown: its texts and tables, with a link to the page for the figures."""

import re
from collections.abc import Iterator, Sequence

from pipelines.studies.hold import Verdict
from pipelines.studies.report.content import (
    COST_NOTE,
    DIFFERENCE_NOTE,
    IMAGE_NOTE,
    SCORE_NOTES,
    SIGMA_NOTE,
    Content,
)
from pipelines.studies.report.tables import Table

SPECIAL = re.compile(r"[\\`*_\[\]<>|~#&$]")  # what Markdown, or HTML within it, would read as markup


def markdown(content: Content, page: str) -> str:
    """Return the Markdown of a report; ``page`` is the file that has the figures."""
    return "\n\n".join(block for block in _blocks(content, page) if block) + "\n"


def escape(text: str) -> str:
    """Return a text as Markdown that shows it, on one line."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def _blocks(content: Content, page: str) -> Iterator[str]:
    yield f"# {escape(content.title)}"
    yield from (f"**{escape(sentence)}**" for sentence in content.warnings)
    yield escape(content.source)
    yield _pairs(content.facts)
    if content.command:
        yield f"To run it again:\n\n{_code(content.command)}"
    if content.note:
        yield f"Known defects of the original, and what differs here: {escape(content.note)}"
    yield f"Curves, histograms and images: [{page}]({page})"
    yield "## Results"
    yield markdown_table(content.scores)
    yield _pairs(content.sources)
    yield from SCORE_NOTES
    yield _pairs(content.row_notes)
    if content.failures:
        yield "Failed:"
        yield _pairs(content.failures)
    if content.sets:
        yield "### Each test set"
        yield markdown_table(content.sets)
    yield "## What held and what did not"
    yield "\n".join(map(_verdict, content.verdicts)) or "The study states nothing that must hold at this budget."
    if content.differences:
        yield "## Differences from the first row"
        yield markdown_table(content.differences)
        yield f"{DIFFERENCE_NOTE} {IMAGE_NOTE}"
    yield "## What it took"
    yield _pairs(content.shared)
    yield markdown_table(content.cost)
    yield COST_NOTE
    if content.sigma:
        yield "## Estimated and true noise level"
        yield markdown_table(content.sigma)
        yield SIGMA_NOTE


def _verdict(verdict: Verdict) -> str:
    code = _inline_code(verdict.expression)
    return f"- **{verdict.outcome}** ({escape(verdict.budget)}): {code}. {escape(verdict.detail)}"


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(label)}: {escape(text)}" for label, text in pairs)


def markdown_table(table: Table) -> str:
    """Return a table; Markdown has one line of headings, so that of a group stands before its columns'."""
    heading = [escape(f"{column.group} {column.label}".strip()) for column in table.columns]
    rule = ["---:" if column.number else "---" for column in table.columns]
    lines = [heading, rule, *([escape(text) for text in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}\n{text}\n{fence}"


def _inline_code(text: str) -> str:
    """Return code within a line; a longer run of backticks than any in it encloses it."""
    fence = "`" * (1 + _longest_run(text))
    pad = " " * (len(fence) > 1)
    return f"{fence}{pad}{' '.join(text.split())}{pad}{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)

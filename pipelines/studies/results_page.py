"""A page of results that studies write: one section for each study and budget, replaced when it is run again."""

import dataclasses
import re
from pathlib import Path

from denoise.errors import UserError
from denoise.files import write_bytes
from pipelines.studies.hold import verdicts
from pipelines.studies.report.cost import cost_table
from pipelines.studies.report.differences import difference_table
from pipelines.studies.report.markdown import escape, markdown_table
from pipelines.studies.report.scores import score_table
from pipelines.studies.results import StudyRun

LENGTH = ("steps", "batch", "images seen", "passes", "images scored")  # what of the costs says how long a study was
SECTION = "<!-- study {name}/{budget} -->\n{text}<!-- end of study -->\n"


def write_section(page: Path, run: StudyRun) -> None:
    """Put a study's table into a Markdown page, in place of its earlier one or at the end; the rest stays.

    Raises:
        UserError: the page cannot be read.
    """
    try:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{page} cannot be read ({error}); give a Markdown file.") from None
    section = SECTION.format(name=run.name, budget=run.budget, text=section_text(run))
    start = re.escape(SECTION.partition("\n")[0].format(name=run.name, budget=run.budget))
    earlier = re.compile(f"{start}\n.*?<!-- end of study -->\n", re.DOTALL)
    if earlier.search(text):
        text = earlier.sub(lambda match: section, text, count=1)
    else:
        text = f"{text.rstrip()}\n\n{section}" if text.strip() else section
    write_bytes(page, text.encode())


def section_text(run: StudyRun) -> str:
    """Return a study's section: what was run, when, where and how long, its table, and what held."""
    trained = {cell.training.run: cell.training for cell in run.cells if cell.training is not None}
    minutes = sum(training.seconds or 0.0 for training in trained.values()) / 60
    scored = sum(float(score.get("seconds", 0.0)) for cell in run.cells for score in cell.scores.values()) / 60
    devices = ", ".join(dict.fromkeys(training.device for training in trained.values())) or "nothing was trained"
    seeds = "seed" if len(run.seeds) == 1 else "seeds"
    protocols = sorted({score["protocol"] for cell in run.cells for score in cell.scores.values()})
    ran = tuple(row for row in run.rows if any(cell.row == row for cell in run.cells))
    others = [row for row in run.rows if row not in ran]
    shown = dataclasses.replace(run, rows=ran)
    cost, shared = cost_table(shown)
    length = "".join(f"; {label} {text}" for label, text in shared if label in LENGTH)
    differing, differences = cost.only(LENGTH), difference_table(shown)
    lines = [
        f"### {run.name}, budget {run.budget}",
        "",
        *([f"**Stand-in images**: {run.stand_in}", ""] if run.stand_in else []),
        f"{run.definition['title']}. {run.dates}, commit {run.commits or 'unknown'}, {devices}; "
        f"{minutes:.0f} minutes of training and {scored:.0f} of scoring, one after the other; "
        f"{seeds} {', '.join(map(str, run.seeds))}; PSNR under protocol {', '.join(protocols)}{length}.",
        *([f"Rows not run: {'; '.join(map(escape, others))}."] if others else []),
        "",
        f"    {run.command}",
        "",
        markdown_table(score_table(shown).without_empty_columns()),
        "",
        *([markdown_table(differing), ""] if len(differing.columns) > 1 else []),
        *(["Paired differences from the first row:", "", markdown_table(differences), ""] if differences else []),
        *(f"- {verdict.outcome}: `{verdict.expression}` ({verdict.detail})" for verdict in verdicts(run)),
    ]
    return "\n".join(lines).rstrip() + "\n"

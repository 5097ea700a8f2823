"""Write the report of a study: index.html, which needs no other file, and report.md with the same tables."""

from pathlib import Path

from denoise.files import write_bytes
from pipelines.studies.results import read_run

PAGE, MARKDOWN = "index.html", "report.md"


def write_study_report(folder: Path) -> Path:
    """Write ``folder``/index.html and ``folder``/report.md, as far as the study in ``folder`` has been run.

    The same results give the same bytes.

    Args:
        folder: studies/NAME/BUDGET, as ``run_study`` leaves it; of the images kept there some are embedded in the page.

    Returns:
        The path of the page.

    Raises:
        UserError: the study has not been run, a file of it is damaged, or the report cannot be written.
    """
    from pipelines.studies.report.content import content
    from pipelines.studies.report.curves import draw_curves, lines
    from pipelines.studies.report.histograms import draw_histograms
    from pipelines.studies.report.images import extremes, shown_images, strips
    from pipelines.studies.report.markdown import markdown
    from pipelines.studies.report.page import render

    run = read_run(folder)
    texts, drawn, images = content(run), lines(run), shown_images(folder, run)
    page = render(texts, drawn, draw_curves(drawn), draw_histograms(run), extremes(images), strips(images))
    write_bytes(folder / PAGE, page.encode())
    write_bytes(folder / MARKDOWN, markdown(texts, PAGE).encode())
    return folder / PAGE

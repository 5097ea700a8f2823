"""The report stage: one self-contained page, PNG figures, the table and the metrics of all methods."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from denoise.errors import UserError, nearest
from denoise.files import finite_or_null, refuse_foreign, write_bytes, write_folder
from pipelines.report.inputs import FIGURES, LABELS, Evaluation, read_evaluations, read_trainings

Row = Mapping[str, str | float]

SCORES = "scores.csv"  # for `dvc plots`
MAX_IMAGES = 6  # embedded in the page and drawn as figures, over all sets
COLUMNS = {  # heading of the plain table -> key of a row
    "method": "method",
    "noise": "noise",
    "data": "data",
    "protocol": "protocol",
    "PSNR noisy": "noisy_psnr",
    "PSNR": "psnr",
    "SSIM noisy": "noisy_ssim",
    "SSIM": "ssim",
}


def write_report(
    models: Sequence[Path], scores: Sequence[Path], out: Path, title: str = "Image denoisers, trained and compared"
) -> Path:
    """Write ``out``/index.html, a page that needs no other file, PNG figures in ``out``/figures, and scores.csv.

    Args:
        models: folders of trained models, each with model.json and metrics.jsonl.
        scores: scores.json files or the folders that hold one; with images/NAME-{noisy,restored,clean}.png beside
            them, up to six images are shown.
        out: the folder to write, replaced as a whole; the same input gives the same bytes.
        title: heading of the page.

    Returns:
        The path of the page.

    Raises:
        UserError: something is missing or malformed, or ``out`` holds files that are not a report's.
    """
    from pipelines.report.curves import curves_figure, draw_chart, make_curves
    from pipelines.report.figures import comparison_figure, select_images
    from pipelines.report.page import render

    evaluations, trainings = read_evaluations(scores), read_trainings(models)
    refuse_foreign(out, ("index.html", "figures", SCORES), "a report")
    images = select_images(evaluations, MAX_IMAGES)
    loss, psnr = make_curves(trainings, "loss"), make_curves(trainings, "val_psnr")
    charts = [draw_chart(loss, "Training loss", ""), draw_chart(psnr, "Validation PSNR", "dB")]
    page = render(title, evaluations, trainings, [chart for chart in charts if chart], images)
    figures = {"curves.png": curves_figure(loss, psnr)} if loss or psnr else {}
    for number, image in enumerate(images, 1):
        name = "comparison.png" if number == 1 else f"comparison-{number}-{_file_name(image.name)}.png"
        figures[name] = comparison_figure(image)

    def write(work: Path) -> None:
        (work / "figures").mkdir()
        (work / "index.html").write_text(page, encoding="utf-8")
        for name, png in figures.items():
            (work / "figures" / name).write_bytes(png)
        with (work / SCORES).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["name", *FIGURES])
            for name, row in finite_or_null(metric_rows(scores)).items():
                rows.writerow([name, *(row[key] for key in FIGURES)])

    write_folder(out, write)
    return out / "index.html"


def metric_rows(scores: Sequence[Path]) -> dict[str, dict[str, str | float]]:
    """Return one row a method: method, noise, data, protocol, and PSNR and SSIM of noisy and restored, to 4 decimals.

    The key is the method, followed by what the rows differ in: METHOD/DATA where there are several data sets, and so on
    for noise and protocol.
    """
    evaluations = read_evaluations(scores)
    varying = [
        label for label in ("data", "noise", "protocol") if len({getattr(row, label) for row in evaluations}) > 1
    ]
    return {"/".join([row.method, *(getattr(row, label) for label in varying)]): _row(row) for row in evaluations}


def table(rows: Iterable[Row]) -> str:
    """Return rows of ``metric_rows`` as aligned plain text with a heading; PSNR in dB with 2 decimals, SSIM with 4."""
    lines = [list(COLUMNS), *([_cell(key, row[key]) for key in COLUMNS.values()] for row in rows)]
    return aligned(lines, [key in FIGURES for key in COLUMNS.values()])


def aligned(lines: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Return a heading and rows as plain text in columns; ``right`` says which of these are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    heading, *rows = lines
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (heading, ["-" * width for width in widths], *rows)
    )


def demo_image(out: Path, evaluation: Path, name: str) -> None:
    """Write a PNG of noisy | restored | clean of one test image, 1200 pixels wide, the same crop enlarged below.

    Args:
        out: the PNG to write.
        evaluation: the folder that holds scores.json and images/.
        name: an image's name in scores.json, with or without its suffix.

    Raises:
        UserError: the evaluation does not hold that image.
    """
    from pipelines.report.figures import MethodResult, demo_figure

    document = read_evaluations([evaluation])[0]
    names = [scores.stem for scores in document.images if document.files(scores.stem)]
    scores = document.image(name)
    files = document.files(scores.stem) if scores else None
    if files is None or scores is None:
        known = f"; it has {', '.join(names[:10])}" if names else "; it has none: evaluate again with --out"
        raise UserError(f"{evaluation} has no image {name}{nearest(name, names)}{known}.")
    image = demo_figure(MethodResult(document.method, scores, files))
    write_bytes(out, image)


def _row(evaluation: Evaluation) -> dict[str, str | float]:
    labels = {label: getattr(evaluation, label) for label in LABELS}
    return {**labels, **{key: round(getattr(evaluation.mean, key), 4) for key in FIGURES}}


def _cell(key: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}" if key.endswith("psnr") else f"{value:.4f}"


def _file_name(name: str) -> str:
    """Return an image's name as a part of a file name: letters, digits, dot, dash and underscore, 60 at most."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60]

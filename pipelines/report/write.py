"""The report stage: one self-contained page, PNG figures, the table and the metrics of all methods."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from denoise.errors import UserError, nearest
from denoise.files import write_folder
from pipelines.report.inputs import FIGURES, LABELS, Evaluation, read_evaluations, read_trainings

Row = Mapping[str, str | float]

SCORES = "scores.csv"  # for `dvc plots`
MOST_IMAGES = 6  # embedded in the page and drawn as figures, over all sets
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
    from pipelines.report.curves import chart, curves, figure
    from pipelines.report.figures import choose, comparison
    from pipelines.report.page import render

    evaluations, trainings = read_evaluations(scores), read_trainings(models)
    _check_replaceable(out)
    shots = choose(evaluations, MOST_IMAGES)
    loss, psnr = curves(trainings, "loss"), curves(trainings, "val_psnr")
    charts = [chart(loss, "Training loss", ""), chart(psnr, "Validation PSNR", "dB")]
    page = render(title, evaluations, trainings, [each for each in charts if each], shots)
    figures = {"curves.png": figure(loss, psnr)} if loss or psnr else {}
    for number, shot in enumerate(shots, 1):
        name = "comparison.png" if number == 1 else f"comparison-{number}-{_file_name(shot.name)}.png"
        figures[name] = comparison(shot)

    def write(work: Path) -> None:
        (work / "figures").mkdir()
        (work / "index.html").write_text(page, encoding="utf-8")
        for name, image in figures.items():
            (work / "figures" / name).write_bytes(image)
        with (work / SCORES).open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["name", *FIGURES])
            lines.writerows([name, *(row[key] for key in FIGURES)] for name, row in metrics(scores).items())

    write_folder(out, write)
    return out / "index.html"


def metrics(scores: Sequence[Path]) -> dict[str, dict[str, str | float]]:
    """Return one row a method: method, noise, data, protocol, and PSNR and SSIM of noisy and restored, to 4 decimals.

    The key is the method, followed by whatever tells rows apart: METHOD/DATA where there are several data sets, and so
    on for noise and protocol.
    """
    evaluations = read_evaluations(scores)
    apart = [
        label for label in ("data", "noise", "protocol") if len({getattr(each, label) for each in evaluations}) > 1
    ]
    return {"/".join([each.method, *(getattr(each, label) for label in apart)]): _row(each) for each in evaluations}


def table(rows: Iterable[Row]) -> str:
    """Return the rows of ``metrics`` as aligned plain text with a heading; PSNR in dB with 2 decimals, SSIM with 4."""
    lines = [list(COLUMNS), *([_cell(key, row[key]) for key in COLUMNS.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if key in FIGURES else cell.ljust(width)
            for cell, width, key in zip(line, widths, COLUMNS.values(), strict=True)
        ).rstrip()
        for line in lines
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
    from pipelines.report.figures import MethodImages, demo

    scored = read_evaluations([evaluation])[0]
    kept = [scores.stem for scores in scored.images if scored.files(scores.stem)]
    figures = scored.image(name)
    files = scored.files(figures.stem) if figures else None
    if files is None or figures is None:
        known = f"; it has {', '.join(kept[:10])}" if kept else "; it has none: evaluate again and keep images"
        raise UserError(f"{evaluation} has no image {name}{nearest(name, kept)}{known}.")
    image = demo(MethodImages(scored.method, figures, files))
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.partial")
    try:
        work.write_bytes(image)
        work.replace(out)
    finally:
        work.unlink(missing_ok=True)


def _row(evaluation: Evaluation) -> dict[str, str | float]:
    labels = {label: getattr(evaluation, label) for label in LABELS}
    return {**labels, **{key: round(getattr(evaluation.mean, key), 4) for key in FIGURES}}


def _cell(key: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}" if key.endswith("psnr") else f"{value:.4f}"


def _check_replaceable(out: Path) -> None:
    """Refuse to replace a folder that holds anything but a report."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but the report is a folder; name another one.")
    others = sorted(path.name for path in out.glob("*") if path.name not in ("index.html", "figures", SCORES))
    if others:
        raise UserError(
            f"{out} holds {others[0]}, which is no part of a report and would be lost; name another folder."
        )


def _file_name(name: str) -> str:
    """Return an image's name as a part of a file name: letters, digits, dot, dash and underscore, 60 at most."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60]

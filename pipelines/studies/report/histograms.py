"""Histograms of the PSNR and SSIM of the test images, one a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pipelines.studies.report.rows import cells_by_row, image_means
from pipelines.studies.results import StudyRun

BINS = 20
WIDTH, HEIGHT, BASE = 220, 90, 72  # of a histogram, in the units of its viewBox; where its bars stand
SCORES = {"psnr": ("PSNR", "dB", ".2f"), "ssim": ("SSIM", "", ".4f")}


@dataclass(frozen=True)
class Histogram:
    """What the page's template draws of one row: bars (x, y, width, height, text), in the units of the viewBox."""

    row: str
    bars: tuple[tuple[float, float, float, float, str], ...]
    median: float  # where its line stands
    text: str


@dataclass(frozen=True)
class Histograms:
    """The histograms of one score, all with the same axes, and the ends of the x axis as text."""

    title: str
    low: str
    high: str
    rows: tuple[Histogram, ...]


def draw_histograms(run: StudyRun) -> list[Histograms]:
    """Return the histograms of each score over all test images together, each as its mean over the seeds."""
    drawn = []
    for key, (title, unit, form) in SCORES.items():
        scores = {row: list(image_means(cells, key).values()) for row, cells in cells_by_row(run).items()}
        scores = {row: numbers for row, numbers in scores.items() if len(numbers) > 1}
        if scores:
            drawn.append(_draw(scores, title, unit, form))
    return drawn


def count(numbers: Sequence[float], low: float, high: float) -> list[int]:
    """Return how many of the numbers lie in each of the equal bins between low and high."""
    counts = [0] * BINS
    for number in numbers:
        share = (number - low) / (high - low) if high > low else 0.5
        counts[min(BINS - 1, int(share * BINS))] += 1
    return counts


def _draw(scores: dict[str, list[float]], title: str, unit: str, form: str) -> Histograms:
    low = min(min(numbers) for numbers in scores.values())
    high = max(max(numbers) for numbers in scores.values())
    counts = {row: count(numbers, low, high) for row, numbers in scores.items()}
    most, width, step = max(max(group) for group in counts.values()), WIDTH / BINS, (high - low) / BINS
    rows = []
    for row, group in counts.items():
        bars = []
        for number, images in enumerate(group):
            height = round((BASE - 6) * images / most, 1)
            ends = f"{low + number * step:{form}} to {low + (number + 1) * step:{form}} {unit}".strip()
            text = f"{images} image{'s' * (images > 1)}, {ends}"
            if images:
                bars.append((round(number * width, 1), round(BASE - height, 1), round(width - 1, 1), height, text))
        middle = median(scores[row])
        at = round(WIDTH * ((middle - low) / (high - low) if high > low else 0.5), 1)
        text = f"{len(scores[row])} images, median {middle:{form}} {unit}".strip()
        rows.append(Histogram(row, tuple(bars), at, text))
    return Histograms(title, f"{low:{form}}", f"{high:{form}} {unit}".strip(), tuple(rows))

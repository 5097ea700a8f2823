"""Images of the report: which are shown, and figures of noisy | restored | clean with an enlarged crop."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from denoise.errors import UserError
from pipelines.report.inputs import KINDS, Evaluation, Scores

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

ENLARGEMENT = 3  # screen pixels along one image pixel, in the crops
EDGE_PENALTY = 0.25  # share of its score that a crop in the middle of an edge of the image loses against the centre
GAP = 12  # pixels between two panels
CAPTION = 18  # font size of a caption, in pixels
INK, MUTED, PAPER = "#1c2024", "#5b626b", "#ffffff"


@dataclass(frozen=True)
class MethodResult:
    """One image restored by one method: its scores, and its files by kind."""

    method: str
    scores: Scores
    files: dict[str, Path]


@dataclass(frozen=True)
class ComparedImage:
    """One test image under one noise, restored by one or several methods."""

    name: str
    noise: str
    data: str
    protocol: str
    results: tuple[MethodResult, ...]


def select_images(evaluations: Iterable[Evaluation], limit: int) -> list[ComparedImage]:
    """Return at most ``limit`` images of which evaluation wrote files, as many of every set, at even intervals.

    What they look like plays no part.
    """
    groups: dict[tuple[str, str, str], dict[str, list[MethodResult]]] = {}
    for evaluation in evaluations:
        group = groups.setdefault((evaluation.noise, evaluation.data, evaluation.protocol), {})
        for scores in evaluation.images:
            if files := evaluation.files(scores.stem):
                group.setdefault(scores.stem, []).append(MethodResult(evaluation.method, scores, files))
    filled = [(key, group) for key, group in groups.items() if group]
    images = []
    for number, (key, group) in enumerate(filled):
        names = list(group)
        count = min(limit // len(filled) + (number < limit % len(filled)), len(names))
        for name in [names[index * len(names) // count] for index in range(count)]:
            images.append(ComparedImage(name, *key, tuple(group[name])))
    return images


def load_images(result: MethodResult) -> dict[str, "Image"]:
    """Return the noisy, restored and clean image, 8-bit grey or RGB, all of one size.

    Raises:
        UserError: one of them does not decode, or their sizes differ.
    """
    from PIL import Image, UnidentifiedImageError

    images = {}
    for kind in KINDS:
        try:
            with Image.open(result.files[kind]) as image:
                images[kind] = image.convert("L" if image.mode in ("L", "1") else "RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            raise UserError(f"{result.files[kind]} does not decode; evaluate {result.method} again.") from None
    sizes = {image.size for image in images.values()}
    if len(sizes) > 1:
        raise UserError(f"{result.files['restored']} is not as large as its noisy or clean image; evaluate again.")
    return images


def crop_centre(image: "Image", side: int) -> "Image":
    """Return the middle of the image, at most ``side`` pixels wide and high, at its own resolution."""
    width, height = min(side, image.width), min(side, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def demo_figure(result: MethodResult) -> bytes:
    """Return a PNG 1200 pixels wide at most: noisy | restored | clean, and below them the same crop enlarged."""
    full, crops = _panels(result, (1200 - 2 * GAP) // 3)
    return _grid([full, crops])


def comparison_figure(image: ComparedImage) -> bytes:
    """Return a PNG with one row a method: noisy | restored | clean, and to the right the same crop enlarged."""
    rows = []
    for result in image.results:
        full, crops = _panels(result, 300)
        rows.append([*full, *crops])
    return _grid(rows)


def as_image(values: "Tensor") -> "Image":
    """Return values (C, H, W), C 1 or 3 and the range 0 to 1, as an image of 8 bits."""
    from PIL import Image

    from denoise.images.tensors import to_pixels

    pixels = to_pixels(values)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def encode_png(image: "Image") -> bytes:
    """Return the image as a PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.info.clear()  # no metadata of the file it came from
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class _Panel:
    """An image in a figure, with a title above its left end and a score above its right one."""

    image: "Image"
    title: str = ""
    score: str = ""


def _panels(result: MethodResult, width: int) -> tuple[list[_Panel], list[_Panel]]:
    """Return the three whole images, scaled to ``width`` with the crop marked, and the three enlarged crops."""
    from PIL import ImageDraw
    from PIL.Image import Resampling

    images = load_images(result)
    clean = images["clean"]
    scale = min(width / clean.width, 1.25 * width / clean.height)
    scale = float(int(scale)) if scale > 1 else scale  # a whole factor enlarges every pixel alike
    size = max(1, round(clean.width * scale)), max(1, round(clean.height * scale))
    enlargement = max(ENLARGEMENT, 2 * int(scale))
    box = strongest_detail(clean, max(1, size[0] // enlargement), max(1, size[1] // enlargement))
    titles = {"noisy": "noisy", "restored": f"restored by {result.method}", "clean": "clean"}
    psnr = {"noisy": f"{result.scores.noisy_psnr:.2f} dB", "restored": f"{result.scores.psnr:.2f} dB", "clean": ""}
    full, crops = [], []
    for kind in KINDS:
        image = images[kind].convert("RGB")
        whole = image.resize(size, Resampling.NEAREST if scale >= 1 else Resampling.LANCZOS)
        left, top, right, bottom = (round(edge * scale) for edge in box)
        draw = ImageDraw.Draw(whole)
        draw.rectangle((left - 1, top - 1, right, bottom), outline="#000000")
        draw.rectangle((left - 3, top - 3, right + 2, bottom + 2), outline="#ffffff", width=2)
        full.append(_Panel(whole, titles[kind], psnr[kind]))
        crop = image.crop(box)
        enlarged = crop.resize((crop.width * enlargement, crop.height * enlargement), Resampling.NEAREST)
        crops.append(_Panel(enlarged))
    return full, crops


def strongest_detail(clean: "Image", width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the window with the strongest edges: shapes, rather than grass or water.

    The image is reduced first, so that fine texture counts little, and windows near the middle are preferred.
    """
    width, height = min(width, clean.width), min(height, clean.height)
    reduction = max(1, min(width, height) // 16)
    grey = np.asarray(clean.convert("L").reduce(reduction), dtype=np.float64)
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, 1:], down[1:, :] = np.diff(grey, axis=1), np.diff(grey, axis=0)
    sums = np.pad(np.sqrt(np.hypot(across, down)).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = max(1, height // reduction), max(1, width // reduction)
    inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    y, x = (np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in inside.shape)
    score = inside * (1 - EDGE_PENALTY * (x[None, :] ** 2 + y[:, None] ** 2))
    top, left = (int(index) * reduction for index in np.unravel_index(np.argmax(score.round(6)), score.shape))
    left, top = min(left, clean.width - width), min(top, clean.height - height)
    return left, top, left + width, top + height


def _grid(rows: Sequence[Sequence[_Panel]]) -> bytes:
    """Return the panels in rows and columns as a PNG, captions above those that have one."""
    from PIL import Image, ImageDraw, ImageFont

    widths = [max(row[column].image.width for row in rows) for column in range(len(rows[0]))]
    above = [CAPTION + GAP if any(panel.title for panel in row) else 0 for row in rows]
    heights = [space + max(panel.image.height for panel in row) for space, row in zip(above, rows, strict=True)]
    size = sum(widths) + GAP * (len(widths) - 1), sum(heights) + GAP * (len(rows) - 1)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=CAPTION)
    y = 0
    for row, space, height in zip(rows, above, heights, strict=True):
        x = 0
        for panel, width in zip(row, widths, strict=True):
            sheet.paste(panel.image, (x, y + space))
            draw.text((x, y + CAPTION), panel.title, fill=INK, font=font, anchor="ls")
            draw.text((x + panel.image.width, y + CAPTION), panel.score, fill=MUTED, font=font, anchor="rs")
            x += width + GAP
        y += height + GAP
    return encode_png(sheet)

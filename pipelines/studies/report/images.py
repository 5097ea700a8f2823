"""Images of a study's report: the best, median and worst of each row, and enlarged crops of all rows side by side."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError
from denoise.files import file_stems, fitting_name, is_name
from pipelines.report.figures import MethodResult, encode_png, load_images, strongest_detail
from pipelines.report.inputs import KINDS, Scores
from pipelines.studies.report.rows import sets_of
from pipelines.studies.results import Cell, StudyRun, image_folder

if TYPE_CHECKING:
    from PIL.Image import Image

WHOLE = 320  # pixels: the width that whole images are reduced to
CROP, ENLARGEMENT = 96, 2  # pixels: the side of a crop; screen pixels along one of its pixels
MOST_WHOLE, MOST_STRIPS = 90, 4  # of images on the page, so that it stays loadable


@dataclass(frozen=True)
class Embedded:
    """An image of the page, with its size on the screen."""

    source: str  # a data URI
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Strip:
    """The same crop of one test image: noisy, restored by each row, clean."""

    name: str
    panels: tuple[Embedded, ...]


@dataclass(frozen=True)
class Shown:
    """A test image of which a row's files are there."""

    row: str
    data: str  # the test set
    noise: str  # that was added to it
    name: str
    rank: int  # by PSNR among all images of the set, 1 the lowest
    count: int  # of these images
    result: MethodResult


def shown_images(folder: Path, run: StudyRun) -> list[Shown]:
    """Return the images that the runner kept, of the first seed of each row that has any, in the order of the rows."""
    found: list[Shown] = []
    for number, row in enumerate(run.rows):
        for cell in (cell for cell in run.cells if cell.row == row):
            kept = image_folder(folder, number, cell.seed)
            of_cell = [image for data in sets_of(cell) for image in _of_set(kept, cell, data)]
            if of_cell:
                found += of_cell
                break
    return found


def extremes(images: Sequence[Shown]) -> dict[str, list[Embedded]]:
    """Return the worst, the median and the best image of each row on each test set, reduced, by row."""
    groups: dict[tuple[str, str], list[Shown]] = {}
    for image in images:
        groups.setdefault((image.row, image.data), []).append(image)
    first = images[0].data if images else ""
    if 3 * len(groups) > MOST_WHOLE:  # the first test set alone
        groups = {key: group for key, group in groups.items() if key[1] == first}
    rows: dict[str, list[Embedded]] = {}
    for (row, _), group in list(groups.items())[: MOST_WHOLE // 3]:
        for image in _extremes(group):
            if (pixels := _load(image)) is not None:
                rows.setdefault(row, []).append(_reduced(image, pixels["restored"]))
    return rows


def strips(images: Sequence[Shown]) -> list[Strip]:
    """Return crops of the few images that most rows have kept: noisy, all rows, clean, at their own resolution."""
    by_name: dict[tuple[str, str], list[Shown]] = {}
    for image in images:
        by_name.setdefault((image.data, image.name), []).append(image)
    most = max(map(len, by_name.values()), default=0)
    chosen = [key for key, group in by_name.items() if len(group) == most][:MOST_STRIPS]
    drawn = (_strip(f"{data}, {name}", by_name[data, name]) for data, name in chosen)
    return [strip for strip in drawn if strip.panels]


def _of_set(folder: Path, cell: Cell, data: str) -> list[Shown]:
    """Return the images of a test set whose files are in the folder of a cell."""
    images: list[Mapping[str, Any]] = list(cell.scores[data].get("images", ()))
    noise = str(cell.scores[data].get("noise", ""))
    stems = file_stems([image["name"] for image in images])
    ranked = sorted(images, key=lambda image: _decibels(image, "psnr"))
    ranks = {image["name"]: rank for rank, image in enumerate(ranked, 1)}
    place = folder / data  # of kodak, or of ee559/val
    if not all(map(is_name, data.split("/"))) or not place.is_dir():
        return []
    names = {file.name for file in place.iterdir()}  # to compare with, so that no image's name can point outside
    found = []
    for image in images:
        files = {kind: fitting_name(stems[image["name"]], f"-{kind}.png") for kind in KINDS}
        if names.issuperset(files.values()):
            paths = {kind: place / name for kind, name in files.items()}
            result = MethodResult(cell.row, _scores(image, stems[image["name"]]), paths)
            found.append(Shown(cell.row, data, noise, image["name"], ranks[image["name"]], len(images), result))
    return found


def _decibels(image: Mapping[str, Any], key: str) -> float:
    return math.inf if image.get(key) is None else float(image[key])  # of equal images: JSON has no infinity


def _scores(image: Mapping[str, Any], stem: str) -> Scores:
    noisy, restored = (_decibels(image, key) for key in ("noisy_psnr", "psnr"))
    noisy_ssim, ssim = (float(image.get(key) or 0) for key in ("noisy_ssim", "ssim"))
    return Scores(image["name"], stem, noisy, restored, noisy_ssim, ssim)


def _extremes(group: Sequence[Shown]) -> list[Shown]:
    """Return the images of the lowest, the middle and the highest rank, each once."""
    ranked = sorted(group, key=lambda image: image.rank)
    middle = min(ranked, key=lambda image: abs(image.rank - (image.count + 1) / 2))
    return list({image.rank: image for image in (ranked[0], middle, ranked[-1])}.values())


def _load(image: Shown) -> "dict[str, Image] | None":
    try:
        return load_images(image.result)
    except UserError:  # a file that does not decode is one image less; the tables stand
        return None


def _reduced(image: Shown, pixels: "Image") -> Embedded:
    from PIL.Image import Resampling

    scale = min(1.0, WHOLE / pixels.width)
    size = max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale))
    scores = image.result.scores
    which = {1: "worst", image.count: "best"}.get(image.rank, f"{image.rank} of {image.count} from below")
    caption = f"{image.data}, {image.name}: {scores.psnr:.2f} dB ({scores.gain:+.2f}), {which}"
    return _embed(pixels.resize(size, Resampling.LANCZOS), f"{image.row}, {image.name}, restored", caption)


def _strip(name: str, group: Sequence[Shown]) -> Strip:
    """Return the panels of one image; noisy and clean appear once for all rows that share them."""
    panels: list[Embedded] = []
    last: list[Embedded] = []
    several = len({image.noise for image in group}) > 1
    for image in group:
        if (pixels := _load(image)) is None:
            continue
        box = strongest_detail(pixels["clean"], CROP, CROP)
        scores = image.result.scores
        captions = {
            "noisy": f"noisy{f' ({image.noise})' * several}, {scores.noisy_psnr:.2f} dB",
            "restored": f"{image.row}, {scores.psnr:.2f} dB",
            "clean": "clean",
        }
        noisy, restored, clean = (
            _embed(pixels[kind].crop(box), f"{name}, {captions[kind]}", captions[kind], ENLARGEMENT) for kind in KINDS
        )
        if noisy.source not in {panel.source for panel in panels}:
            panels.append(noisy)
        panels.append(restored)
        if clean.source not in {panel.source for panel in last}:
            last.append(clean)
    return Strip(name, (*panels, *last))


def _embed(image: "Image", alt: str, caption: str, enlargement: int = 1) -> Embedded:
    source = f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"
    return Embedded(source, image.width * enlargement, image.height * enlargement, alt, caption)

"""The page of ``denoise advise``: what was measured, as drawings, and the method that it asks for."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from denoise.noise_meter import REACH, NoiseMeasurement
from pipelines.advise.advice import Advice
from pipelines.advise.answer import measured
from pipelines.advise.folder import FolderNoise
from pipelines.report.correlation import CorrelationMap, draw_map
from pipelines.report.curves import Chart, Curve, draw_chart
from pipelines.report.figures import as_image, encode_png
from pipelines.report.template import page_template

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 3  # images with the blocks that were taken
MAX_SIDE = 900  # pixels of such an image, which is made smaller for the page
LEVELS = 255.0  # deviations are drawn in the unit of 8-bit images
OUTLINE = (255, 196, 0)


@dataclass(frozen=True)
class Panel:
    """An image within the page."""

    title: str
    source: str  # a data URL
    width: int
    height: int


def render(folder: Path, found: FolderNoise, advice: Advice, restored: Sequence[Panel] = ()) -> str:
    """Return the page as HTML that needs no other file.

    Args:
        folder: of the images.
        found: what was measured.
        advice: what follows from it.
        restored: an image before and after a quick training, where there was one.
    """
    return page_template("advice.html.jinja", "pipelines.advise").render(
        title=f"The noise of {folder.name}",
        advice=advice,
        measured=dict(measured(found)),
        charts=[chart for chart in (_level(found.noise), _lags(found.noise)) if chart],
        map=_map(found.noise),
        restored=restored,
        panels=list(_flat_blocks(found)),
    )


def panel(title: str, image: "Image") -> Panel:
    """Return an image as it is put into the page."""
    source = f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"
    return Panel(title, source, image.width, image.height)


def _level(noise: NoiseMeasurement) -> Chart | None:
    points = [(at, LEVELS * variance**0.5) for at, variance in sorted(_points(noise))]
    ends = noise.brightness.min().item(), noise.brightness.max().item()
    line = [(at, LEVELS * noise.sigma(at)) for at in np.linspace(*ends, 60).tolist()]
    curves = [Curve("measured", 0, [], points), Curve("as Poisson and Gaussian noise", 1, [], line, dash=1)]
    return draw_chart(curves, "Deviation against brightness", "of 255", "brightness")


def _points(noise: NoiseMeasurement) -> Iterator[tuple[float, float]]:
    return zip(noise.brightness.tolist(), noise.variance.clamp_min(0).tolist(), strict=True)


def _lags(noise: NoiseMeasurement) -> Chart | None:
    lags = range(REACH + 1)
    across = Curve("to the right", 0, [], [(float(lag), noise.lag(0, lag)) for lag in lags])
    down = Curve("downwards", 1, [], [(float(lag), noise.lag(lag, 0)) for lag in lags])
    return draw_chart([across, down], "Correlation against distance", "", "pixels")


def _map(noise: NoiseMeasurement) -> CorrelationMap:
    lags = range(-REACH, REACH + 1)
    return draw_map("of the noise", [[noise.lag(dy, dx) for dx in lags] for dy in lags])


def _flat_blocks(found: FolderNoise) -> Iterator[Panel]:
    """Yield the images with most of the blocks that were measured, with the outlines of these."""
    from PIL import ImageDraw

    from denoise.noise_meter import SIDE

    places = found.noise.places
    for number in sorted(places, key=lambda image: -len(places[image]))[:SHOWN]:
        measured = found.measured[number]
        image = as_image(measured.middle()).convert("RGB")
        draw = ImageDraw.Draw(image)
        for top, left in places[number].tolist():
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=OUTLINE, width=1 + image.width // 900)
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        yield panel(f"{measured.path.name}: {len(places[number])} blocks", image)

"""Letters as small images, rendered once, for text noise."""

import string
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from denoise.errors import UserError

LETTERS = string.ascii_letters + string.digits
SIZES = (8, 11, 16, 22, 32, 45, 64)  # heights of a line in pixels, each sqrt(2) times the one before


@dataclass(frozen=True, eq=False)
class Glyph:
    """A letter of one size.

    Attributes:
        alpha: (h, w) float32 in [0, 1], the coverage of each pixel; cropped to the letter.
        left: from the pen to the first column of alpha, in pixels.
        top: from the top of the line to the first row of alpha, in pixels.
        advance: from this letter's pen to the next one's, in pixels.
    """

    alpha: NDArray[np.float32]
    left: int
    top: int
    advance: int


@lru_cache(maxsize=1)
def atlas() -> tuple[tuple[Glyph, ...], ...]:
    """Return, for each of SIZES, its LETTERS.

    Raises:
        UserError: the font is not installed.
    """
    path = _font_file()
    return tuple(_alphabet(ImageFont.truetype(path, size)) for size in SIZES)


def _font_file() -> str:
    """Find the font that matplotlib carries, without importing matplotlib, which takes a second."""
    spec = find_spec("matplotlib")
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return str(path)
    raise UserError(
        "noise of family text needs the font DejaVuSans.ttf of the package matplotlib, which was not found; "
        "install it with: pip install matplotlib."
    )


def _alphabet(font: ImageFont.FreeTypeFont) -> tuple[Glyph, ...]:
    return tuple(_render(letter, font) for letter in LETTERS)


def _render(letter: str, font: ImageFont.FreeTypeFont) -> Glyph:
    left, top, right, bottom = (round(edge) for edge in font.getbbox(letter))
    canvas = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(canvas).text((-left, -top), letter, fill=255, font=font)
    alpha = np.asarray(canvas, dtype=np.float32) / np.float32(255)
    return Glyph(alpha, left, top, max(1, round(font.getlength(letter))))

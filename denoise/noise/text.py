"""Text written over the image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denoise.noise.base import Noise, Observed
from denoise.noise.glyphs import SIZES, Glyph, atlas

if TYPE_CHECKING:
    from denoise.rng import Rng

LONGEST = 12  # letters in a string
Layer = NDArray[np.float32]  # (C + 1, H, W): colour times alpha, and alpha


@dataclass(frozen=True)
class Text(Noise):
    """Writes random strings over an image until they touch a share of its pixels; ``text0.25`` covers a quarter.

    Size, colour and place of each string are random; edges are smooth; nothing says which pixels are covered. The
    level is the share; Lehtinen et al. 2018 (section 3.3) train with U(0, 0.5). A last letter is left out where
    that brings the share closer to the level, which is within half a letter then.
    """

    family: ClassVar[str] = "text"
    limits: ClassVar[tuple[float, float]] = (0, 0.9)
    example: ClassVar[str] = "text0.25 (share of covered pixels) or text0_0.5 (a range)"

    def corrupt(self, image: Tensor, rng: "Rng") -> Observed:
        """Return the image under text. The text is laid out on the host, of the keys and the image's shape only."""
        share = self.draw_level(rng)
        seeds = rng.stream("text").integers(2**62, 1)
        layers = [
            write(image.shape[1:], wanted, np.random.default_rng(seed))
            for wanted, seed in zip(share.flatten().tolist(), seeds.flatten().tolist(), strict=True)
        ]
        layer = torch.from_numpy(np.stack(layers)).to(image)
        return Observed(image * (1 - layer[:, -1:]) + layer[:, :-1], share)


def write(shape: tuple[int, ...], share: float, random: np.random.Generator) -> Layer:
    """Return a layer of text for an image of ``shape`` (C, H, W) that touches ``share`` of its pixels."""
    channels, height, width = shape
    layer = np.zeros((channels + 1, height, width), dtype=np.float32)
    sizes = max(1, sum(size <= min(height, width) / 4 for size in SIZES))
    missing = share * height * width
    while missing > 0:
        number = random.integers(sizes)
        letters, size = atlas()[number], SIZES[number]
        colour = np.append(random.random(channels, dtype=np.float32), np.float32(1))[:, None, None]
        # A string may begin left of the image or above it, so that the edges are covered like the rest.
        x, y = int(random.integers(-size * LONGEST // 2, width)), int(random.integers(-size, height))
        for letter in random.integers(len(letters), size=random.integers(1, LONGEST + 1)).tolist():
            place, alpha = _visible(layer, letters[letter], x, y)
            added = np.count_nonzero((place[-1] == 0) & (alpha > 0))
            if added > 2 * missing:
                return layer
            place *= 1 - alpha
            place += colour * alpha
            missing -= added
            x += letters[letter].advance
    return layer


def _visible(layer: Layer, glyph: Glyph, x: int, y: int) -> tuple[Layer, NDArray[np.float32]]:
    """Return the part of the layer, a view, under a letter with its pen at x and its line's top at y; and its alpha."""
    left, top = x + glyph.left, y + glyph.top
    height, width = glyph.alpha.shape
    place = layer[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    rows, columns = place.shape[1:]
    from_row, from_column = max(-top, 0), max(-left, 0)
    return place, glyph.alpha[from_row : from_row + rows, from_column : from_column + columns]

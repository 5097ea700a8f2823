"""Text noise: random strings written over the image."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denoise.noise.base import Noise, Observation
from denoise.noise.glyphs import SIZES, Glyph, atlas
from denoise.rng import Rng, to_device

MAX_LETTERS = 12  # in a string
Layer = NDArray[np.float32]  # (C + 1, H, W): colour times alpha, and alpha


@dataclass(frozen=True)
class Text(Noise):
    """Writes random strings over an image until they touch a share of its pixels; ``text0.25`` covers a quarter.

    Size, colour and place of each string are random; edges are smooth; there is no mask of them. The level
    is the share; Lehtinen et al. 2018 (section 3.3) train with U(0, 0.5). The last letter is left out if
    that brings the share closer to the level; so the share is within half a letter of it.
    """

    family: ClassVar[str] = "text"
    limits: ClassVar[tuple[float, float]] = (0, 0.9)
    example: ClassVar[str] = "text0.25 (share of covered pixels) or text0_0.5 (a range)"
    on_host: ClassVar[bool] = True

    def corrupt(self, image: Tensor, rng: Rng) -> Observation:
        """Return the image under text. The text is laid out on the CPU, from the keys and the image's shape only."""
        share, seeds = self.draw_level(rng.on("cpu")), rng.on("cpu").stream("text").integers(2**62, 1)
        layers = [
            write(image.shape[1:], target, np.random.default_rng(seed))
            for target, seed in zip(share.flatten().tolist(), seeds.flatten().tolist(), strict=True)
        ]
        layer = to_device(torch.from_numpy(np.stack(layers)), image.device).to(image.dtype)
        return Observation(image * (1 - layer[:, -1:]) + layer[:, :-1], to_device(share, image.device))


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
        # A string may start left of the image or above it, so that the edges are covered like the rest.
        x, y = int(random.integers(-size * MAX_LETTERS // 2, width)), int(random.integers(-size, height))
        for letter in random.integers(len(letters), size=random.integers(1, MAX_LETTERS + 1)).tolist():
            pixels, alpha = _visible(layer, letters[letter], x, y)
            new = np.count_nonzero((pixels[-1] == 0) & (alpha > 0))
            if new > 2 * missing:
                return layer
            pixels *= 1 - alpha
            pixels += colour * alpha
            missing -= new
            x += letters[letter].advance
    return layer


def _visible(layer: Layer, glyph: Glyph, x: int, y: int) -> tuple[Layer, NDArray[np.float32]]:
    """Return the part of the layer, a view, under a letter with its pen at x and its line's top at y; and its alpha."""
    left, top = x + glyph.left, y + glyph.top
    height, width = glyph.alpha.shape
    pixels = layer[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    rows, columns = pixels.shape[1:]
    from_row, from_column = max(-top, 0), max(-left, 0)
    return pixels, glyph.alpha[from_row : from_row + rows, from_column : from_column + columns]

"""Restoring images of any size: in one pass where memory allows it, else in tiles, without seams.

Tiles are as small as covers the image; without a given tile they are those of the least arithmetic.

Tiles start at multiples of what the net's pooling needs, so that its grid lies where it would lie in a pass over the
whole image. Where two tiles overlap, the outer quarter of each is discarded (the tile's border shows there) and the
middle half is a raised-cosine cross-fade. Of the image only one band of tiles is ever held as float.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil, isqrt

import numpy as np
import torch
from torch import Tensor

from denoise.denoiser import Denoiser
from denoise.errors import UserError
from denoise.images.io import DecodedImage
from denoise.images.tensors import as_channels, pad, to_pixels, to_tensor, unpad

OVERLAP = 64  # pixels
ESTIMATION_SIDE = 1024  # of the centre of an image, from which its noise level is estimated

AdvanceProgress = Callable[[float], None]  # called with 1 after each tile
ReadRegion = Callable[[slice, slice], Tensor]  # rows, columns -> that part of the noisy image (C, h, w)
Sides = tuple[int, int]  # height and width of the tiles
TileWindow = tuple[int, Tensor]  # start of a tile along one side, and the weights of its pixels along that side


def restore_tensor(
    denoiser: Denoiser,
    noisy: Tensor,
    level: float | None = None,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    device: torch.device | str = "cpu",
    advance: AdvanceProgress | None = None,
) -> Tensor:
    """Return the restored image of a noisy one (C, H, W) in [0, 1]: float32 on the CPU, same shape, not clipped.

    Args:
        denoiser: of 1 or 3 channels. A grey image is repeated for a colour denoiser, which returns the mean; the
            channels of a colour image go through a grey denoiser one at a time.
        noisy: C 1 or 3, any H and W.
        level: of the noise in its own unit (sigma in [0, 1], a Poisson peak); None: the level that the denoiser was
            trained for, or, where that is a range and the denoiser needs a level, one estimated from the image.
        tile: the largest side of a tile in pixels, rounded up to a multiple of ``denoiser.multiple``; None: tiles of at
            most ``denoiser.pixels_per_pass`` pixels.
        overlap: the minimum overlap of neighbouring tiles in pixels.
        device: where the denoiser is.
        advance: called after each of the ``count_tiles`` tiles.

    Raises:
        UserError: a sigma outside [0, 1], or a tile and an overlap that do not fit together.
    """
    restored = torch.empty(noisy.shape, dtype=torch.float32)
    channels, height, width = noisy.shape

    def read(rows: slice, columns: slice) -> Tensor:
        return noisy[:, rows, columns].float()

    sides = _tile_sides(height, width, denoiser.multiple, denoiser.pixels_per_pass, tile, overlap)
    level = _level(denoiser, level, read, height, width)
    restore = _tile_restorer(denoiser, level, device, advance)
    for top, band in _restore_bands(read, restore, (channels, height, width), denoiser.multiple, sides, overlap):
        restored[:, top : top + band.shape[1]] = band
    return restored


def restore_image(
    denoiser: Denoiser,
    image: DecodedImage,
    level: float | None = None,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    device: torch.device | str = "cpu",
    advance: AdvanceProgress | None = None,
) -> DecodedImage:
    """Return the restored image: same size, type, alpha and metadata; arguments as for ``restore_tensor``.

    Beside the two images, one band of tiles is held as float, never the whole image.
    """
    pixels = np.empty_like(image.pixels)
    height, width, channels = pixels.shape

    def read(rows: slice, columns: slice) -> Tensor:
        return to_tensor(image.pixels[rows, columns])

    sides = _tile_sides(height, width, denoiser.multiple, denoiser.pixels_per_pass, tile, overlap)
    level = _level(denoiser, level, read, height, width)
    restore = _tile_restorer(denoiser, level, device, advance)
    for top, band in _restore_bands(read, restore, (channels, height, width), denoiser.multiple, sides, overlap):
        pixels[top : top + band.shape[1]] = to_pixels(band, pixels.dtype)
    return replace(image, pixels=pixels)


def count_tiles(
    height: int, width: int, multiple: int, pixels: int, tile: int | None = None, overlap: int = OVERLAP
) -> int:
    """Return the number of tiles, of at most ``pixels`` or of sides up to ``tile``, that an image is divided into."""
    tall, wide = _tile_sides(height, width, multiple, pixels, tile, overlap)
    return len(_starts(height, multiple, tall, overlap)) * len(_starts(width, multiple, wide, overlap))


def _level(denoiser: Denoiser, level: float | None, read: ReadRegion, height: int, width: int) -> float | None:
    """Return the noise level of the image, the same for all tiles; if it is estimated, then from the image's centre."""
    if level is not None and denoiser.noise.startswith("gauss") and not 0 <= level <= 1:
        raise UserError(
            f"sigma is {level:g}, expected a number from 0 to 1; for 25 of 255 grey levels give {25 / 255:.3f}."
        )
    if level is not None or not denoiser.needs_level:
        return level
    top, left = max(0, height - ESTIMATION_SIDE) // 2, max(0, width - ESTIMATION_SIDE) // 2
    return denoiser.level_of(read(slice(top, top + ESTIMATION_SIDE), slice(left, left + ESTIMATION_SIDE)))


def _tile_restorer(
    denoiser: Denoiser, level: float | None, device: torch.device | str, advance: AdvanceProgress | None
) -> Callable[[Tensor], Tensor]:
    """Return the function that restores (C, h, w), of any size and channels, in one pass."""

    def restore(noisy: Tensor) -> Tensor:
        channels, height, width = noisy.shape
        per_channel = channels > denoiser.channels
        batch = noisy.unsqueeze(1) if per_channel else as_channels(noisy, denoiser.channels).unsqueeze(0)
        batch = pad(batch.to(device), denoiser.multiple)
        levels = None if level is None else torch.full((len(batch), 1, 1, 1), level, device=device)
        with torch.inference_mode():
            restored = unpad(denoiser(batch, levels), height, width).float().cpu()
        if advance is not None:
            advance(1)
        return restored.squeeze(1) if per_channel else as_channels(restored.squeeze(0), channels)

    return restore


def _restore_bands(
    read: ReadRegion,
    restore: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    multiple: int,
    sides: Sides,
    overlap: int,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (top, (C, h, W)): the restored image from top to bottom, each row once."""
    channels, height, width = shape
    rows, columns = (_windows(size, multiple, side, overlap) for size, side in zip(shape[1:], sides, strict=True))
    unfinished = torch.zeros(channels, 0, width)  # rows of the band above that this band adds to
    for index, (top, row_weights) in enumerate(rows):
        bottom = min(top + len(row_weights), height)
        band = torch.zeros(channels, bottom - top, width)
        band[:, : unfinished.shape[1]] = unfinished
        for left, column_weights in columns:
            right = min(left + len(column_weights), width)
            restored = restore(read(slice(top, bottom), slice(left, right)))
            restored = restored * row_weights[: bottom - top, None] * column_weights[: right - left]
            band[:, :, left:right] += restored
        finished = (rows[index + 1][0] if index + 1 < len(rows) else height) - top
        unfinished = band[:, finished:].clone()
        yield top, band[:, :finished]


def _tile_sides(height: int, width: int, multiple: int, pixels: int, tile: int | None, overlap: int) -> Sides:
    """Return the sides of the tiles: up to ``tile``, or of at most ``pixels`` and with the least arithmetic."""
    largest = isqrt(pixels) // multiple * multiple if tile is None else _round_up(tile, multiple)
    if overlap < 0 or largest - _round_up(overlap, multiple) < multiple:
        raise UserError(
            f"tile {largest} and overlap {overlap} do not fit together: "
            f"expected an overlap of 0 to {max(largest - multiple, 0)}; give a larger tile or a smaller overlap."
        )
    if tile is not None:
        return _side(height, multiple, largest, overlap), _side(width, multiple, largest, overlap)
    shared = _round_up(overlap, multiple)
    choices = []
    for limit in range(shared + multiple, max(_round_up(height, multiple), largest) + 1, multiple):
        tall = _side(height, multiple, limit, overlap)
        widest = pixels // tall // multiple * multiple
        if widest - shared >= multiple:
            choices.append((tall, _side(width, multiple, widest, overlap)))

    def work(sides: Sides) -> Sides:
        tall, wide = sides
        count = len(_starts(height, multiple, tall, overlap)) * len(_starts(width, multiple, wide, overlap))
        return count * tall * wide, count

    return min(set(choices), key=lambda sides: (*work(sides), sides))


def _side(size: int, multiple: int, largest: int, overlap: int) -> int:
    """Return the smallest side of the fewest tiles that cover ``size`` and whose sides are at most ``largest``."""
    padded, shared = _round_up(size, multiple), _round_up(overlap, multiple)
    if padded <= largest:
        return padded
    count = ceil((padded - shared) / (largest - shared))
    return _round_up(ceil((padded - shared) / count) + shared, multiple)


def _starts(size: int, multiple: int, side: int, overlap: int) -> list[int]:
    """Return the starts of the tiles along one side: multiples of ``multiple``, evenly spaced up to the side's end."""
    last = _round_up(size, multiple) - side
    if last <= 0:
        return [0]
    steps = ceil(last / (side - _round_up(overlap, multiple)))
    return [last * step // steps // multiple * multiple for step in range(steps + 1)]


def _windows(size: int, multiple: int, side: int, overlap: int) -> list[TileWindow]:
    """Return the tiles along one side of the padded image; the weights at each pixel sum to 1."""
    padded = _round_up(size, multiple)
    starts = _starts(size, multiple, side, overlap)
    length = min(side, padded)
    weights = torch.ones(len(starts), length)
    for index in range(len(starts) - 1):
        fade = _fade(starts[index] + length - starts[index + 1])
        weights[index, length - len(fade) :] *= 1 - fade
        weights[index + 1, : len(fade)] *= fade
    total = torch.zeros(padded)  # 1 except where three tiles meet
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + length] += weight
    return [(start, weight / total[start : start + length]) for start, weight in zip(starts, weights, strict=True)]


def _round_up(size: int, multiple: int) -> int:
    return ceil(size / multiple) * multiple


def _fade(overlap: int) -> Tensor:
    """Return weights that rise from 0 to 1: a raised cosine in the middle half, constant in the outer quarters."""
    margin = overlap // 4
    ramp = (torch.arange(overlap) - margin + 0.5) / max(overlap - 2 * margin, 1)
    return 0.5 - 0.5 * torch.cos(torch.pi * ramp.clamp(0, 1))

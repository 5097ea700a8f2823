"""Restore images of any size: in one pass where they fit into a tile, else tile by tile, without seams.

Tiles start at multiples of what the net's pooling needs, so that its grid lies where it would lie in a pass over the
whole image. Where two tiles overlap, the outer quarter of each is thrown away (there the tile's border shows) and
the middle half is a raised-cosine cross-fade. Of the image only one band of tiles is ever held as float.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from denoise.errors import UserError
from denoise.images.io import DecodedImage
from denoise.images.tensors import as_channels, pad, to_pixels, to_tensor, unpad

if TYPE_CHECKING:
    from denoise.denoiser import Denoiser

TILE, OVERLAP = 512, 64  # pixels
ESTIMATED = 1024  # side of the centre of an image that its noise level is estimated from

Advance = Callable[[float], None]  # called with 1 after each tile
Read = Callable[[slice, slice], Tensor]  # rows, columns -> that part of the noisy image (C, h, w)
Window = tuple[int, Tensor]  # where a tile starts along one side, and the weights of its pixels along that side


def restore_tensor(
    denoiser: "Denoiser",
    noisy: Tensor,
    level: float | None = None,
    *,
    tile: int = TILE,
    overlap: int = OVERLAP,
    device: torch.device | str = "cpu",
    advance: Advance | None = None,
) -> Tensor:
    """Return the restored image of a noisy one (C, H, W) in [0, 1]: float32 on the CPU, same shape, not clipped.

    Args:
        denoiser: of 1 or 3 channels. A grey image is repeated for a colour denoiser, which returns the mean; the
            channels of a colour image go through a grey denoiser one by one.
        noisy: C 1 or 3, any H and W.
        level: of the noise in its own unit (sigma in [0, 1], a Poisson peak); None: what the denoiser was trained for,
            estimated from the image where that is a range and the denoiser needs it.
        tile: side of a tile in pixels, rounded up to a multiple of ``denoiser.multiple``.
        overlap: the least overlap of neighbouring tiles in pixels.
        device: where the denoiser is.
        advance: called after each of the ``count_tiles`` tiles.

    Raises:
        UserError: a sigma outside [0, 1], or tile and overlap that do not go together.
    """
    restored = torch.empty(noisy.shape, dtype=torch.float32)
    channels, height, width = noisy.shape

    def read(rows: slice, columns: slice) -> Tensor:
        return noisy[:, rows, columns].float()

    bands = _restored_bands(
        read,
        _tile_restorer(denoiser, _level(denoiser, level, read, height, width), device, advance),
        _windows(height, denoiser.multiple, tile, overlap),
        _windows(width, denoiser.multiple, tile, overlap),
        (channels, height, width),
    )
    for top, band in bands:
        restored[:, top : top + band.shape[1]] = band
    return restored


def restore_image(
    denoiser: "Denoiser",
    image: DecodedImage,
    level: float | None = None,
    *,
    tile: int = TILE,
    overlap: int = OVERLAP,
    device: torch.device | str = "cpu",
    advance: Advance | None = None,
) -> DecodedImage:
    """Return the restored image: same size, type, alpha and metadata; arguments as for ``restore_tensor``.

    Besides the two images it holds one band of tiles as float, never the whole image.
    """
    pixels = np.empty_like(image.pixels)
    height, width, channels = pixels.shape

    def read(rows: slice, columns: slice) -> Tensor:
        return to_tensor(image.pixels[rows, columns])

    bands = _restored_bands(
        read,
        _tile_restorer(denoiser, _level(denoiser, level, read, height, width), device, advance),
        _windows(height, denoiser.multiple, tile, overlap),
        _windows(width, denoiser.multiple, tile, overlap),
        (channels, height, width),
    )
    for top, band in bands:
        pixels[top : top + band.shape[1]] = to_pixels(band, pixels.dtype)
    return replace(image, pixels=pixels)


def count_tiles(height: int, width: int, multiple: int, tile: int = TILE, overlap: int = OVERLAP) -> int:
    """Return how many tiles an image is restored in."""
    return len(_starts(height, multiple, tile, overlap)) * len(_starts(width, multiple, tile, overlap))


def _level(denoiser: "Denoiser", level: float | None, read: Read, height: int, width: int) -> float | None:
    """Return the noise level of the image: one for all its tiles, estimated from its centre if at all."""
    if level is not None and denoiser.noise.startswith("gauss") and not 0 <= level <= 1:
        raise UserError(
            f"sigma is {level:g}, expected a number from 0 to 1; for 25 of 255 grey levels give {25 / 255:.3f}."
        )
    if level is not None or not denoiser.needs_level:
        return level
    top, left = max(0, height - ESTIMATED) // 2, max(0, width - ESTIMATED) // 2
    return denoiser.level_of(read(slice(top, top + ESTIMATED), slice(left, left + ESTIMATED)))


def _tile_restorer(
    denoiser: "Denoiser", level: float | None, device: torch.device | str, advance: Advance | None
) -> Callable[[Tensor], Tensor]:
    """Return the function that restores (C, h, w) in one pass, whatever its size and channels."""

    def restore(noisy: Tensor) -> Tensor:
        channels, height, width = noisy.shape
        one_by_one = channels > denoiser.channels
        batch = noisy.unsqueeze(1) if one_by_one else as_channels(noisy, denoiser.channels).unsqueeze(0)
        batch = pad(batch.to(device), denoiser.multiple)
        levels = None if level is None else torch.full((len(batch), 1, 1, 1), level, device=device)
        with torch.inference_mode():
            restored = unpad(denoiser(batch, levels), height, width).float().cpu()
        if advance is not None:
            advance(1)
        return restored.squeeze(1) if one_by_one else as_channels(restored.squeeze(0), channels)

    return restore


def _restored_bands(
    read: Read,
    restore: Callable[[Tensor], Tensor],
    rows: list[Window],
    columns: list[Window],
    shape: tuple[int, int, int],
) -> Iterator[tuple[int, Tensor]]:
    """Yield (top, (C, h, W)): the restored image from top to bottom, each row once."""
    channels, height, width = shape
    unfinished = torch.zeros(channels, 0, width)  # rows of the band above that this band adds to
    for index, (top, down) in enumerate(rows):
        bottom = min(top + len(down), height)
        band = torch.zeros(channels, bottom - top, width)
        band[:, : unfinished.shape[1]] = unfinished
        for left, across in columns:
            right = min(left + len(across), width)
            restored = restore(read(slice(top, bottom), slice(left, right)))
            restored = restored * down[: bottom - top, None] * across[: right - left]
            band[:, :, left:right] += restored
        finished = (rows[index + 1][0] if index + 1 < len(rows) else height) - top
        unfinished = band[:, finished:].clone()
        yield top, band[:, :finished]


def _starts(size: int, multiple: int, tile: int, overlap: int) -> list[int]:
    """Return where the tiles along one side start: multiples of ``multiple``, evenly spread, ending with the side."""
    tile = ceil(tile / multiple) * multiple
    stride = (tile - overlap) // multiple * multiple
    if overlap < 0 or stride < multiple:
        raise UserError(
            f"tile {tile} and overlap {overlap} do not go together: "
            f"expected an overlap of 0 to {max(tile - multiple, 0)}; give a larger tile or a smaller overlap."
        )
    reach = ceil(size / multiple) * multiple - tile  # the last start
    if reach <= 0:
        return [0]
    steps = ceil(reach / stride)
    return [reach * step // steps // multiple * multiple for step in range(steps + 1)]


def _windows(size: int, multiple: int, tile: int, overlap: int) -> list[Window]:
    """Return the tiles along one side of the padded image; the weights at each pixel sum to 1."""
    padded = ceil(size / multiple) * multiple
    starts = _starts(size, multiple, tile, overlap)
    length = min(ceil(tile / multiple) * multiple, padded)
    weights = torch.ones(len(starts), length)
    for index in range(len(starts) - 1):
        fade = _fade(starts[index] + length - starts[index + 1])
        weights[index, length - len(fade) :] *= 1 - fade
        weights[index + 1, : len(fade)] *= fade
    total = torch.zeros(padded)  # 1 but where three tiles meet
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + length] += weight
    return [(start, weight / total[start : start + length]) for start, weight in zip(starts, weights, strict=True)]


def _fade(overlap: int) -> Tensor:
    """Return weights that rise from 0 to 1: a raised cosine in the middle half, constant in the outer quarters."""
    margin = overlap // 4
    ramp = (torch.arange(overlap) - margin + 0.5) / max(overlap - 2 * margin, 1)
    return 0.5 - 0.5 * torch.cos(torch.pi * ramp.clamp(0, 1))

"""Restoring images of any size: whole, or in tiles without seams (``denoise.images.tiles`` says where these lie).

Of an image file only one band of tiles is ever held as float.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from denoise.denoiser import Denoiser
from denoise.errors import UserError
from denoise.images.io import DecodedImage
from denoise.images.tensors import Pixels, as_channels, pad, to_pixels, to_tensor, unpad
from denoise.images.tiles import Tiles
from denoise.noise import parse_noise
from denoise.rng import Rng, batch_rng
from denoise.stacks.value_range import ValueRange

ESTIMATION_SIDE = 1024  # of the centre of an image, from which its noise level is estimated

AdvanceProgress = Callable[[float], None]  # called after each pass with its number of tiles
ReadRegion = Callable[[slice, slice], Tensor]  # rows, columns -> that part of the noisy image (C, h, w)
RestoreTiles = Callable[[Sequence[Tensor]], list[Tensor]]  # (C, h, w) each, of one size once they are padded


def restore_tensor(
    denoiser: Denoiser,
    noisy: Tensor,
    level: float | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
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
        tile, overlap: as for ``choose_tiles``.
        device: where the denoiser is.
        advance: called after each pass with the number of tiles in it.

    Raises:
        UserError: a sigma outside [0, 1], or a tile and an overlap that do not fit together.
    """
    _check_level(denoiser, level)

    def read(rows: slice, columns: slice) -> Tensor:
        return noisy[:, rows, columns].float()

    restored = torch.empty(noisy.shape, dtype=torch.float32)
    level = _level(denoiser, read, noisy.shape) if level is None else level
    restore = _tile_restorer(denoiser, level, device, advance=advance)
    for top, band in _restore_bands(read, restore, noisy.shape, choose_tiles(denoiser, tile, overlap)):
        restored[:, top : top + band.shape[1]] = band
    return restored


def restore_image(
    denoiser: Denoiser,
    image: DecodedImage,
    level: float | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    device: torch.device | str = "cpu",
    advance: AdvanceProgress | None = None,
) -> DecodedImage:
    """Return the restored image: same size, type, alpha and metadata; arguments as for ``restore_tensor``.

    Beside the two images, one band of tiles is held as float, never the whole image. A model that was trained on a
    range of values restores in it, as ``restore_plane`` does.
    """
    limits = denoiser.value_range
    if limits is not None:
        pixels = restore_plane(
            denoiser, image.pixels, limits, level, tile=tile, overlap=overlap, device=device, advance=advance
        )
        return replace(image, pixels=pixels)
    _check_level(denoiser, level)
    pixels = np.empty_like(image.pixels)
    height, width, channels = pixels.shape
    shape = torch.Size((channels, height, width))

    def read(rows: slice, columns: slice) -> Tensor:
        return to_tensor(image.pixels[rows, columns])

    level = _level(denoiser, read, shape) if level is None else level
    restore = _tile_restorer(denoiser, level, device, advance=advance)
    for top, band in _restore_bands(read, restore, shape, choose_tiles(denoiser, tile, overlap)):
        pixels[top : top + band.shape[1]] = to_pixels(band, pixels.dtype)
    return replace(image, pixels=pixels)


def restore_plane(
    denoiser: Denoiser,
    plane: Pixels,
    value_range: ValueRange,
    level: float | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    device: torch.device | str = "cpu",
    advance: AdvanceProgress | None = None,
) -> Pixels:
    """Return the restored plane (H, W, C) of a stack, of the same type; other arguments as for ``restore_tensor``.

    What the denoiser changes is added to the stored values, so one that changes nothing returns the same bits.

    Args:
        denoiser: what restores it.
        plane: values of any type, C 1 or 3.
        value_range: the values that are 0 and 1 for the denoiser.
        level: of the noise, in units of the range.
        tile, overlap, device, advance: as for ``restore_tensor``.
    """
    _check_level(denoiser, level)
    restored = np.empty_like(plane)
    height, width, channels = plane.shape
    shape = torch.Size((channels, height, width))

    def read(rows: slice, columns: slice) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(value_range.to_unit(plane[rows, columns]).transpose(2, 0, 1)))

    level = _level(denoiser, read, shape) if level is None else level
    restore = _tile_restorer(denoiser, level, device, advance=advance)

    def change(tiles: Sequence[Tensor]) -> list[Tensor]:
        return [after - before for after, before in zip(restore(tiles), tiles, strict=True)]

    for top, band in _restore_bands(read, change, shape, choose_tiles(denoiser, tile, overlap)):
        rows = slice(top, top + band.shape[1])
        restored[rows] = value_range.with_change(plane[rows], band.permute(1, 2, 0).numpy())
    return restored


def restore_batch(denoiser: Denoiser, noisy: Tensor, level: Tensor | None = None, rng: Rng | None = None) -> Tensor:
    """Restore a batch (B, C, H, W) of any size in [0, 1]: whole images, or by tiles where the denoiser has them.

    Args:
        denoiser: of C channels, on the device of ``noisy``.
        noisy: the images.
        level: of their noise, (B, 1, 1, 1); None: as for ``restore_tensor``.
        rng: the randomness of methods that have some at test time; every tile has its own.

    Returns:
        The restored images, float32 (B, C, H, W) on the same device, not clipped.

    Raises:
        UserError: the denoiser's tile and overlap do not fit together.
    """
    tiles = denoiser.tiles
    if tiles is None:
        return unpad(denoiser(pad(noisy, denoiser.multiple), level, rng), *noisy.shape[-2:])
    rng = rng or batch_rng(0, 0, torch.arange(len(noisy)), noisy.device)
    restored = torch.empty_like(noisy, dtype=torch.float32)
    for index, image in enumerate(noisy):

        def read(rows: slice, columns: slice, image: Tensor = image) -> Tensor:
            return image[:, rows, columns]

        known = _level(denoiser, read, image.shape) if level is None else level[index].item()
        restore = _tile_restorer(denoiser, known, noisy.device, rng=replace(rng, keys=rng.keys[index : index + 1]))
        for top, band in _restore_bands(read, restore, image.shape, tiles):
            restored[index, :, top : top + band.shape[1]] = band
    return restored


def choose_tiles(denoiser: Denoiser, tile: int | None = None, overlap: int | None = None) -> Tiles:
    """Return how an image of any size is divided.

    Args:
        denoiser: what restores it.
        tile: the largest side of a tile in pixels, rounded up to a multiple of ``denoiser.multiple``; None: the
            denoiser's own tiles, and without these tiles of at most ``denoiser.pixels_per_pass`` pixels.
        overlap: the least overlap of neighbours in pixels; None: 64, at most half of a tile.

    Raises:
        UserError: a tile and an overlap that do not fit together.
    """
    own = denoiser.tiles
    if tile is not None or own is None:
        return Tiles(denoiser.multiple, denoiser.pixels_per_pass, tile, overlap)
    return own if overlap is None else replace(own, overlap=overlap)


def _check_level(denoiser: Denoiser, level: float | None) -> None:
    if level is not None and parse_noise(denoiser.noise).assumed_family == "gauss" and not 0 <= level <= 1:
        raise UserError(
            f"sigma is {level:g}, expected a number from 0 to 1; for 25 of 255 grey levels give {25 / 255:.3f}."
        )


def _level(denoiser: Denoiser, read: ReadRegion, shape: torch.Size) -> float | None:
    """Return the noise level to assume for an image, the same for all tiles; an estimate is of the image's centre."""
    if not denoiser.needs_level:
        return None
    top, left = (max(0, size - ESTIMATION_SIDE) // 2 for size in shape[1:])
    return denoiser.level_of(read(slice(top, top + ESTIMATION_SIDE), slice(left, left + ESTIMATION_SIDE)))


def _tile_restorer(
    denoiser: Denoiser,
    level: float | None,
    device: torch.device | str,
    *,
    rng: Rng | None = None,
    advance: AdvanceProgress | None = None,
) -> RestoreTiles:
    """Return the function that restores tiles (C, h, w) in one pass: on the CPU, each with randomness of its own."""
    numbers = count()

    def restore(tiles: Sequence[Tensor]) -> list[Tensor]:
        channels = tiles[0].shape[0]
        per_channel = channels > denoiser.channels
        parts = [
            tile.unsqueeze(1) if per_channel else as_channels(tile, denoiser.channels).unsqueeze(0) for tile in tiles
        ]
        batch = torch.cat([pad(part.to(device), denoiser.multiple) for part in parts])
        levels = None if level is None else torch.full((len(batch), 1, 1, 1), level, device=device)
        base = rng or batch_rng(0, 0, torch.arange(len(parts[0])), device)
        rngs = [base.stream(f"tile {number}") if number else base for number in islice(numbers, len(tiles))]
        keys = np.concatenate([rng.keys for rng in rngs])
        with torch.inference_mode():
            restored = denoiser(batch, levels, replace(base, keys=keys)).float().cpu()
        if advance is not None:
            advance(len(tiles))
        chunks = [unpad(chunk, *tile.shape[1:]) for chunk, tile in zip(restored.chunk(len(tiles)), tiles, strict=True)]
        return [chunk.squeeze(1) if per_channel else as_channels(chunk.squeeze(0), channels) for chunk in chunks]

    return restore


def _restore_bands(
    read: ReadRegion, restore: RestoreTiles, shape: torch.Size, tiles: Tiles
) -> Iterator[tuple[int, Tensor]]:
    """Yield (top, (C, h, W)): the restored image from top to bottom, each row once."""
    channels, height, width = shape
    rows, columns = tiles.windows(height, width)
    together = tiles.together(height, width)
    unfinished = torch.zeros(channels, 0, width)  # rows of the band above that this band adds to
    for index, (top, row_weights) in enumerate(rows):
        bottom = min(top + len(row_weights), height)
        band = torch.zeros(channels, bottom - top, width)
        band[:, : unfinished.shape[1]] = unfinished
        for first in range(0, len(columns), together):
            group = columns[first : first + together]
            regions = [read(slice(top, bottom), slice(left, left + len(weights))) for left, weights in group]
            for (left, weights), restored in zip(group, restore(regions), strict=True):
                part = restored.shape[2]
                band[:, :, left : left + part] += restored * row_weights[: bottom - top, None] * weights[:part]
        finished = (rows[index + 1][0] if index + 1 < len(rows) else height) - top
        unfinished = band[:, finished:].clone()
        yield top, band[:, :finished]

"""Pixel arrays and tensors: conversion, channels, and padding."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[Any]  # (H, W, C) uint8, uint16, or float32 in units of a range, C 1 or 3


def to_tensor(pixels: Pixels) -> Tensor:
    """Turn (H, W, C) uint8 or uint16 into float32 (C, H, W) in [0, 1]; float32 keeps its values."""
    if pixels.dtype == np.float32:
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes).div_(np.iinfo(pixels.dtype).max)


def to_pixels(tensor: Tensor, dtype: Any = np.uint8) -> Pixels:
    """Turn (C, H, W) in [0, 1] into (H, W, C) of ``dtype`` (uint8, uint16): clip, then round to the nearest."""
    scaled = tensor.detach().float().clamp(0, 1).mul_(np.iinfo(dtype).max).round_()
    return np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy().astype(dtype))


def as_channels(tensor: Tensor, channels: int) -> Tensor:
    """Turn (..., C, H, W) into ``channels`` channels: grey is repeated, colour becomes the mean of R, G and B."""
    if tensor.shape[-3] == channels:
        return tensor
    if channels == 1:
        return tensor.mean(dim=-3, keepdim=True)
    return tensor.expand(*tensor.shape[:-3], channels, *tensor.shape[-2:])


def pad(batch: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) at the bottom and right, by reflection, to sides that are multiples of ``multiple``.

    Works for any size: if the padding is larger than the image, the reflection goes back and forth; a side of one pixel
    is repeated.
    """
    for dim in (-2, -1):
        size = batch.shape[dim]
        if size % multiple:
            batch = batch.index_select(dim, _reflection(size, -(-size // multiple) * multiple, batch.device))
    return batch


def unpad(batch: Tensor, height: int, width: int) -> Tensor:
    """Cut (..., H', W') back to its first ``height`` rows and ``width`` columns."""
    return batch[..., :height, :width]


def _reflection(size: int, padded: int, device: torch.device) -> Tensor:
    """Return the index in 0 .. size - 1 that each of ``padded`` positions repeats: 0 1 2 1 0 1 2 ..."""
    period = max(2 * (size - 1), 1)
    position = torch.arange(padded, device=device) % period
    return torch.minimum(position, period - position) if size > 1 else torch.zeros_like(position)

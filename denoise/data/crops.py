"""Crops: cut out of images, stacked into batches, and converted to floats."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from denoise.images.tensors import as_channels, pad, to_tensor


def random_crop(view: "np.ndarray | Tensor", size: int, at: Sequence[float]) -> Tensor:
    """Return a crop (C, size, size) of pixels (H, W, C) or of floats (C, H, W).

    ``at`` is the place in the range of possible ones, as two numbers in [0, 1): (0, 0) is top left. Images smaller than
    the crop are padded by reflection. 8-bit pixels stay bytes, 16-bit ones become floats. A view of one value for the
    whole image, such as a noise level, is returned unchanged.
    """
    if isinstance(view, Tensor) and view.numel() == 1:
        return view
    height, width = sides(view)
    top = int(at[0] * max(1, height - size + 1))
    left = int(at[1] * max(1, width - size + 1))
    rows, columns = slice(top, top + size), slice(left, left + size)
    if isinstance(view, Tensor):
        crop = view[:, rows, columns]
    elif view.dtype == np.uint8:
        crop = torch.from_numpy(view[rows, columns].copy()).permute(2, 0, 1)  # a copy, which lets the image be freed
    else:
        crop = to_tensor(view[rows, columns])
    return crop if crop.shape[-2:] == (size, size) else pad(crop[None], size)[0]


def sides(view: "np.ndarray | Tensor") -> tuple[int, int]:
    """Return height and width of pixels (H, W, C) or of floats (C, H, W)."""
    height, width = view.shape[:2] if isinstance(view, np.ndarray) else view.shape[-2:]
    return height, width


def collate(crops: Sequence[Mapping[str, Tensor]], channels: int) -> dict[str, Tensor]:
    """Stack the crops of a batch, view by view: (b, C, H, W), bytes if that loses nothing, else floats in [0, 1]."""
    return {name: _stacked([crop[name] for crop in crops], channels) for name in crops[0]}


def as_floats(view: Tensor) -> Tensor:
    """Convert bytes to floats in [0, 1]; floats are returned unchanged."""
    return torch.div(view, 255) if view.dtype == torch.uint8 else view


def _stacked(crops: Sequence[Tensor], channels: int) -> Tensor:
    if all(crop.dtype == torch.uint8 and crop.shape[0] <= channels for crop in crops):
        # Stacked channels last, the layout of the images in memory, so that whole rows are copied.
        return torch.stack([as_channels(crop, channels).permute(1, 2, 0) for crop in crops]).permute(0, 3, 1, 2)
    single = all(crop.numel() == 1 for crop in crops)
    return torch.stack([crop if single else as_channels(as_floats(crop), channels) for crop in crops])

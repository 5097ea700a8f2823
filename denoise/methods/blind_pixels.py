"""Single pixels hidden from the net: where they are, and what replaces them (Noise2Void, Noise2Same)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from denoise.rng import Rng


@dataclass(frozen=True, eq=False)
class HiddenPixels:
    """One pixel in every box of a grid, in every plane: rows, columns and validity, each (B, P, N).

    P is the number of channels where each hides its own pixels, else 1. ``inside`` is False where the pixel fell
    outside the image, in a box that the border cuts; row and column are then those of a pixel of the same box.
    """

    rows: Tensor
    columns: Tensor
    inside: Tensor
    height: int
    width: int

    def index(self, channels: int) -> Tensor:
        """Return the pixels' indices in a flattened plane, (B, channels, N)."""
        return (self.rows * self.width + self.columns).expand(-1, channels, -1)

    def mask(self) -> Tensor:
        """Return (B, P, H, W), 1 at the hidden pixels and 0 elsewhere."""
        batch, planes, _ = self.rows.shape
        flat = torch.zeros(batch, planes, self.height * self.width, device=self.rows.device)
        return flat.scatter_(2, self.index(planes), self.inside.float()).view(batch, planes, self.height, self.width)

    def put(self, image: Tensor, values: Tensor) -> Tensor:
        """Return a copy of a batch (B, C, H, W) with ``values`` (B, C, N) at the pixels."""
        flat, index = image.flatten(2), self.index(image.shape[1])
        # No two boxes share a pixel, so writing back a pixel's own value where nothing is hidden changes no other.
        return flat.scatter(2, index, torch.where(self.inside, values, flat.gather(2, index))).view_as(image)


def box_side(mask_ratio: float) -> int:
    """Return the side of the boxes with one hidden pixel each, for a fraction ``mask_ratio`` of hidden pixels."""
    return max(round(1 / math.sqrt(mask_ratio)), 1)


def draw_hidden_pixels(rng: Rng, planes: int, height: int, width: int, box: int) -> HiddenPixels:
    """Draw one pixel uniformly in every box of a grid (stratified sampling; Krull et al. 2019).

    A box that the border cuts is drawn from as if it were whole and yields nothing where its pixel falls outside, as
    in the authors' code: so every pixel of the image is hidden equally often.
    """
    down, across = -(-height // box), -(-width // box)
    device = rng.device
    position = rng.stream("places").integers(box * box, planes, down, across)  # within the box
    rows = position // box + box * torch.arange(down, device=device)[:, None]
    columns = position % box + box * torch.arange(across, device=device)
    inside = (rows < height) & (columns < width)
    return HiddenPixels(
        rows.clamp_max(height - 1).flatten(2), columns.clamp_max(width - 1).flatten(2), inside.flatten(2), height, width
    )


def uniform_neighbours(image: Tensor, pixels: HiddenPixels, radius: int, rng: Rng, *, with_centre: bool) -> Tensor:
    """Return (B, C, N): for each hidden pixel the value of a pixel drawn uniformly from the window around it.

    The window has side 2 radius + 1 and is cut at the border of the image: pixels outside are never drawn, and those at
    the border are no likelier for it. Without the centre all other pixels of the window, those of its row and column
    included, are equally likely. Only the values that are needed are read.
    """
    top, left, rows, columns = _window(pixels, radius)
    count = rows * columns
    number = rng.stream("neighbours").integers(1 << 62, *pixels.rows.shape[1:])
    if with_centre:
        choice = number % count
    else:
        choice = number % (count - 1).clamp_min(1)
        choice += choice >= (pixels.rows - top) * columns + (pixels.columns - left)
        choice = torch.minimum(choice, count - 1)  # an image of one pixel has no neighbours
    index = (top + choice // columns) * pixels.width + left + choice % columns
    return image.flatten(2).gather(2, index.expand(-1, image.shape[1], -1))


def median_neighbours(image: Tensor, pixels: HiddenPixels, radius: int) -> Tensor:
    """Return (B, C, N): for each hidden pixel the median of the window around it without its centre.

    Of an even number of values it is the mean of the middle two (N2V2, Höck et al. 2022).
    """
    steps = torch.arange(-radius, radius + 1, device=image.device)
    rows = (pixels.rows[..., None, None] + steps[:, None]).expand(-1, -1, -1, len(steps), len(steps)).flatten(3)
    columns = (pixels.columns[..., None, None] + steps).expand(-1, -1, -1, len(steps), len(steps)).flatten(3)
    inside = (rows >= 0) & (rows < pixels.height) & (columns >= 0) & (columns < pixels.width)
    inside &= (rows != pixels.rows[..., None]) | (columns != pixels.columns[..., None])
    index = rows.clamp(0, pixels.height - 1) * pixels.width + columns.clamp(0, pixels.width - 1)
    index = index.expand(-1, image.shape[1], -1, -1)
    values = image.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    ordered = values.masked_fill(~inside, torch.inf).sort(dim=3).values
    count = inside.sum(3, keepdim=True).expand(*index.shape[:3], 1).clamp_min(1)
    middle = 0.5 * (ordered.gather(3, (count - 1) // 2) + ordered.gather(3, count // 2))
    return middle.squeeze(3)


def _window(pixels: HiddenPixels, radius: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return first row, first column, rows and columns of the part of each window that lies in the image."""
    top, left = (pixels.rows - radius).clamp_min(0), (pixels.columns - radius).clamp_min(0)
    rows = (pixels.rows + radius).clamp_max(pixels.height - 1) - top + 1
    columns = (pixels.columns + radius).clamp_max(pixels.width - 1) - left + 1
    return top, left, rows, columns

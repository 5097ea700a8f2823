"""Noise2Void: predict hidden pixels of single noisy images (Krull et al., CVPR 2019); N2V2 and structN2V."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from denoise.errors import UserError
from denoise.fields import Positive
from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.blind_pixels import (
    HiddenPixels,
    box_side,
    draw_hidden_pixels,
    median_neighbours,
    uniform_neighbours,
)
from denoise.methods.losses import LossName, distance
from denoise.rng import Rng

Structure = Literal["none", "h", "v", "cross", "square"]


@dataclass(frozen=True)
class Noise2Void(Method):
    """Replace a few pixels by neighbours and predict their noisy values from the surroundings.

        L = mean over the hidden pixels i of (f(x~)_i - x_i)^2

    with the noisy image x and its copy x~, where each hidden pixel i holds the value of a pixel drawn uniformly from
    the window around it (section 3; ``replacement`` and ``loss_name`` vary this).

    The defaults are those of the authors' BSD68 experiment (juglab/n2v): one pixel in a box of 22 x 22, a window of
    5 x 5 that includes the pixel itself, hidden pixels drawn for each channel on its own. These are 8 or 9 values a
    channel in a crop of 64, meant for batches of 128; with small batches a larger ``mask_ratio`` (0.01) learns more per
    step. A crop should not be smaller than a box.

    The mean is over each sample's hidden pixels, then over samples; the authors' sum(mask d^2) / sum(mask) of the batch
    is the same where all samples hide equally many. Pixels that the noise is known to have destroyed do not count.

    N2V2 (Höck et al. 2022) is ``replacement=median`` with its network. structN2V (Broaddus et al. 2020) also hides
    the pixels whose noise is correlated with that of the hidden one: see ``hide_structure``.
    """

    mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.00198  # share of hidden pixels
    radius: Positive = 2  # of the window that replacements come from
    replacement: Literal["uniform_with_centre", "uniform", "median"] = "uniform_with_centre"
    per_channel: bool = True  # each channel hides its own pixels; False: all channels of one pixel
    structure: Structure = "none"  # h: along a row, v: along a column, cross: both, square: all around
    structure_size: Annotated[int, Field(ge=3)] = 11  # side in pixels, odd
    loss_name: LossName = "l2"
    needs: ClassVar[tuple[View, ...]] = ("noisy", "mask")

    def __post_init__(self) -> None:
        if self.structure_size % 2 == 0:
            raise UserError(f"method.structure_size is {self.structure_size}, expected an odd number; write 9 or 11.")

    def assumes_independent_noise(self) -> bool:
        """Return whether no neighbours are hidden together with a pixel."""
        return self.structure == "none"

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the image with hidden pixels as input, the image as target, the mask of the hidden pixels."""
        noisy = sample["noisy"]
        _, channels, height, width = noisy.shape
        planes = channels if self.per_channel else 1
        pixels = draw_hidden_pixels(rng, planes, height, width, box_side(self.mask_ratio))
        hidden = pixels.put(noisy, self._replacements(noisy, pixels, rng))
        mask = pixels.mask()
        if self.structure != "none":
            hidden = hide_structure(hidden, mask, self.structure, self.structure_size, rng)
        return {"input": hidden, "target": noisy, "mask": mask * sample["mask"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the distance to the noisy image over the hidden pixels."""
        restored = net(batch["input"])
        return {"loss": distance(self.loss_name, restored, batch["target"], progress=progress, mask=batch["mask"])}

    def _replacements(self, noisy: Tensor, pixels: HiddenPixels, rng: Rng) -> Tensor:
        if self.replacement == "median":
            return median_neighbours(noisy, pixels, self.radius)
        with_centre = self.replacement == "uniform_with_centre"
        return uniform_neighbours(noisy, pixels, self.radius, rng, with_centre=with_centre)


def hide_structure(image: Tensor, mask: Tensor, structure: Structure, size: int, rng: Rng) -> Tensor:
    """Fill the pixels around each hidden one with numbers uniform between the smallest and largest of the sample.

    The range is CAREamics'; the authors' code draws from [-2, 2] on data of unit deviation. The hidden pixel itself
    keeps its replacement, unless it lies in the structure of another. What would lie outside the image is left out
    (the authors' code moves it to the border, where it may overwrite the hidden pixel).

    Args:
        image: (B, C, H, W) with replaced pixels.
        mask: (B, C or 1, H, W), 1 at the replaced pixels.
        structure: which pixels around a hidden one.
        size: how far they reach from end to end, odd.
        rng: of the batch.
    """
    kernel = torch.zeros(size, size, device=image.device)
    middle = size // 2
    if structure in ("h", "cross"):
        kernel[middle] = 1
    if structure in ("v", "cross"):
        kernel[:, middle] = 1
    if structure == "square":
        kernel[:] = 1
    kernel[middle, middle] = 0
    with torch.autocast(image.device.type, enabled=False):
        around = F.conv2d(mask.flatten(0, 1).unsqueeze(1), kernel[None, None], padding=middle)
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    filling = low + (high - low) * rng.stream("structure").uniform(*image.shape[1:])
    return torch.where(around.squeeze(1).view_as(mask) > 0.5, filling, image)

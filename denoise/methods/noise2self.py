"""Noise2Self: J-invariant denoising on a grid (Batson and Royer, ICML 2019)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.blind_grid import fill_hidden, grid_mask
from denoise.methods.losses import LossName, distance
from denoise.rng import Rng


@dataclass(frozen=True)
class Noise2Self(Method):
    """Fill every width-th pixel of every width-th row from its neighbours and predict its noisy value.

        L = mean over J of (f(x_Jc) - x)^2

    with the noisy image x, the hidden pixels J (one in each cell of width^2), and x_Jc the image in which each of them
    is the mean of its neighbours (``loss_name`` names another distance).

    Each sample draws its own J every step. (The authors' notebook takes the phases of the grid in order and never
    reaches the last.) Pixels that the noise is known to have destroyed do not count.
    """

    width: Annotated[int, Field(ge=2, le=32)] = 4  # of the grid; one pixel of width^2 is hidden
    j_invariant: bool = True  # restore every pixel from an image that hides it: width^2 passes; False: one plain pass
    loss_name: LossName = "l2"
    needs: ClassVar[tuple[View, ...]] = ("noisy", "mask")

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the image with filled pixels as input, the image as target, the mask of the filled pixels."""
        noisy = sample["noisy"]
        hidden = grid_mask(noisy, self.width, rng.stream("phase").integers(self.width**2))
        return {"input": fill_hidden(noisy, hidden), "target": noisy, "mask": hidden * sample["mask"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the distance to the noisy image over the hidden pixels."""
        restored = net(batch["input"])
        return {"loss": distance(self.loss_name, restored, batch["target"], progress=progress, mask=batch["mask"])}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return each pixel from the pass that hides it (``j_invariant``), or the output of one plain pass."""
        restored: Tensor = restore_hidden(net, noisy, self.width) if self.j_invariant else net(noisy)
        return restored


def restore_hidden(net: nn.Module, noisy: Tensor, cell: int) -> Tensor:
    """Return (B, C, H, W), every pixel from the one of cell^2 passes in which it was hidden."""
    restored = torch.zeros_like(noisy)
    for phase in range(cell**2):
        hidden = grid_mask(noisy, cell, torch.tensor([phase], device=noisy.device))
        restored = torch.where(hidden, net(fill_hidden(noisy, hidden)).to(noisy.dtype), restored)
    return restored

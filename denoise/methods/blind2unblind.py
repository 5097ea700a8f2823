"""Blind2Unblind: hide every pixel once, then make the hidden visible again (Wang et al., CVPR 2022)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from denoise.fields import Share
from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.blind_grid import fill_hidden, grid_mask
from denoise.methods.losses import limited, masked_mean
from denoise.methods.noise2self import restore_hidden
from denoise.rng import Rng

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Blind2Unblind(Method):
    """Restore each pixel from a copy that hides it, and pull that towards the net's output for the visible image.

        L = mean (h + beta f(y) - (beta + 1) y)^2 + alpha mean (h - y)^2

        restored = (h + beta f(y)) / (beta + 1)

    with the noisy image y; f(y) without gradient; and h the image put together from the outputs for the cell^2 masked
    copies of y, each pixel from the copy that hides it (the global mask mapper). The paper writes lambda for beta and
    eta for alpha; beta is ``beta_start`` for the fraction ``hold`` of training, then rises linearly to ``beta_end``.
    The authors hold it for 0.8 with noise of one level and for 0.4 with a range. A step costs cell^2 + 1 passes. Pixels
    that the noise is known to have destroyed do not count.
    """

    cell: Annotated[int, Field(ge=2, le=32)] = 4  # one pixel of cell^2 is hidden in each copy
    alpha: Weight = 1.0
    beta_start: Weight = 2.0
    beta_end: Weight = 20.0
    hold: Share = 0.8
    fast: bool = False  # restore by f(y) alone: one pass instead of cell^2 + 1
    needs: ClassVar[tuple[View, ...]] = ("noisy", "mask")

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the masked copies (B, cell^2, C, H, W) as input, the noisy image as target. Nothing is drawn."""
        noisy = sample["noisy"]
        masks = self._masks(noisy)
        return {"input": fill_hidden(noisy, masks).transpose(0, 1), "target": noisy, "mask": sample["mask"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the loss, its regularisation (blind) and its re-visible term."""
        copies, noisy = batch["input"], batch["target"]
        outputs = net(copies.flatten(0, 1)).float().unflatten(0, copies.shape[:2])
        blind = (outputs * self._masks(noisy).squeeze(1)).sum(1) - noisy
        with torch.no_grad():
            visible = net(noisy).float() - noisy
        regularisation = masked_mean(blind.square(), batch["mask"])
        revisible = masked_mean((blind + self.beta(progress) * visible).square(), batch["mask"])
        return {
            "loss": self.alpha * regularisation + revisible,
            "regularisation": regularisation.detach(),
            "revisible": revisible.detach(),
        }

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return (h + beta f(y)) / (1 + beta) with the last beta of training, or f(y) where ``fast``."""
        visible: Tensor = net(noisy)
        if self.fast:
            return visible
        return (restore_hidden(net, noisy, self.cell) + self.beta_end * visible) / (1 + self.beta_end)

    def beta(self, progress: float | Tensor) -> float | Tensor:
        """Return the weight of the visible term."""
        rise = limited((progress - self.hold) / ((1 - self.hold) or 1), 0.0, 1.0)
        return self.beta_start + (self.beta_end - self.beta_start) * rise

    def _masks(self, noisy: Tensor) -> Tensor:
        """Return (cell^2, 1, 1, H, W), True where each copy hides."""
        phases = torch.arange(self.cell**2, device=noisy.device)
        return grid_mask(noisy, self.cell, phases).unsqueeze(1)

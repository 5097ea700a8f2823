"""Noise2Same: a self-supervised bound instead of a blind spot (Xie, Wang and Ji, NeurIPS 2020)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.blind_pixels import box_side, draw_hidden_pixels
from denoise.methods.losses import masked_mean
from denoise.rng import Rng

EPSILON = 1e-12  # added under the root, whose slope at 0 is infinite


@dataclass(frozen=True)
class Noise2Same(Method):
    """Reconstruct the noisy image x, and keep the output at a pixel when the pixel is hidden.

        L = mean (f(x) - x)^2 + lambda_inv s sqrt(mean over J of (f(x) - f(x_Jc))^2 + 1e-12)

    with the hidden pixels J, and x_Jc the image in which they are replaced by numbers from N(mean x, (fill_sigma s)^2).
    The authors normalise images to mean 0 and deviation 1. Images here stay in [0, 1], so the standard deviation s of
    the noisy sample takes the place of their 1, and the loss is s^2 times theirs. The root is of each sample's mean
    (theirs is of the batch's), so that the loss does not depend on how a batch is divided between ranks. Pixels that
    the noise is known to have destroyed do not count in the first term.
    """

    mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.005  # share of hidden pixels, drawn as in Noise2Void
    lambda_inv: Annotated[float, Field(ge=0)] = 2.0
    fill_sigma: Annotated[float, Field(ge=0)] = 0.2  # deviation of the replacements, in units of s
    needs: ClassVar[tuple[View, ...]] = ("noisy", "mask")

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the noisy image as input and target, ``hidden_input`` with its mask, and the mask of what counts."""
        noisy = sample["noisy"]
        _, channels, height, width = noisy.shape
        pixels = draw_hidden_pixels(rng, channels, height, width, box_side(self.mask_ratio))
        noise = rng.stream("fill").normal(*pixels.rows.shape[1:])
        filling = noisy.mean((1, 2, 3))[:, None, None] + self.fill_sigma * _deviation(noisy).squeeze(3) * noise
        return {
            "input": noisy,
            "hidden_input": pixels.put(noisy, filling),
            "hidden": pixels.mask(),
            "mask": sample["mask"],
        }

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the loss, its reconstruction term and its invariance term (the root, unweighted)."""
        noisy = batch["input"]
        restored = net(noisy).float()
        change = (restored - net(batch["hidden_input"]).float()).square()
        reconstruction = masked_mean((restored - noisy).square(), batch["mask"])
        mask = batch["hidden"].flatten(1)
        roots = ((change.flatten(1) * mask).sum(1) / mask.sum(1).clamp_min(1) + EPSILON).sqrt()
        invariance = (_deviation(noisy).flatten() * roots).mean()
        return {
            "loss": reconstruction + self.lambda_inv * invariance,
            "reconstruction": reconstruction.detach(),
            "invariance": invariance.detach(),
        }


def _deviation(noisy: Tensor) -> Tensor:
    """Return the standard deviation of each sample's values, (B, 1, 1, 1)."""
    return torch.std(noisy, dim=(1, 2, 3), correction=0, keepdim=True)

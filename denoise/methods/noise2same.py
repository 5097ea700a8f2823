"""Noise2Same: a self-supervised bound instead of a blind spot (Xie, Wang and Ji, NeurIPS 2020)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.blind_pixels import box_side, draw_places
from denoise.methods.losses import masked_mean

if TYPE_CHECKING:
    from denoise.rng import Rng

EPSILON = 1e-12  # under the root, whose slope at 0 is infinite


@dataclass(frozen=True)
class Noise2Same(Method):
    """Reconstruct the noisy image, and change as little as possible where a pixel is hidden.

    The authors normalise images to mean 0 and deviation 1. Images here stay in [0, 1], so what is 1 there is the
    standard deviation s of the noisy sample here:

        loss = mean (f(x) - x)^2 + lambda_inv s sqrt(mean over hidden pixels of (f(x) - f(x_hidden))^2)

    which is s^2 times theirs, and hidden pixels are drawn from N(mean, (fill_sigma s)^2), the sample's mean. The root
    is of each sample's mean (theirs is of the batch's), so that the loss does not depend on how a batch is shared.
    Pixels that noise is known to have destroyed do not count in the reconstruction.
    """

    mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.005  # share of hidden pixels, drawn as in Noise2Void
    lambda_inv: Annotated[float, Field(ge=0)] = 2.0
    fill_sigma: Annotated[float, Field(ge=0)] = 0.2  # of what hidden pixels are replaced by, in units of s
    needs: ClassVar[tuple[View, ...]] = ("noisy", "mask")

    def make_batch(self, sample: Views, rng: "Rng") -> Batch:
        """Return the noisy image as input and target, ``hidden_input`` with its mask, and the mask of what counts."""
        noisy = sample["noisy"]
        _, channels, height, width = noisy.shape
        places = draw_places(rng, channels, height, width, box_side(self.mask_ratio))
        noise = rng.stream("fill").normal(*places.rows.shape[1:])
        filling = noisy.mean((1, 2, 3))[:, None, None] + self.fill_sigma * _deviation(noisy).squeeze(3) * noise
        return {
            "input": noisy,
            "hidden_input": places.put(noisy, filling),
            "hidden": places.mask(),
            "mask": sample["mask"],
        }

    def loss(self, net: nn.Module, batch: Batch, progress: float) -> Batch:
        """Return the loss, its reconstruction term and its invariance term (the root, unweighted)."""
        noisy = batch["input"]
        restored = net(noisy).float()
        change = (restored - net(batch["hidden_input"]).float()).square()
        reconstruction = masked_mean((restored - noisy).square(), batch["mask"])
        counts = batch["hidden"].flatten(1)
        roots = ((change.flatten(1) * counts).sum(1) / counts.sum(1).clamp_min(1) + EPSILON).sqrt()
        invariance = (_deviation(noisy).flatten() * roots).mean()
        return {
            "loss": reconstruction + self.lambda_inv * invariance,
            "reconstruction": reconstruction.detach(),
            "invariance": invariance.detach(),
        }


def _deviation(noisy: Tensor) -> Tensor:
    """Return the standard deviation of each sample's values, (B, 1, 1, 1)."""
    return torch.std(noisy, dim=(1, 2, 3), correction=0, keepdim=True)

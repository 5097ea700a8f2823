"""Neighbor2Neighbor: pairs of neighbouring pixels as two noisy images (Huang et al., CVPR 2021)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from denoise.images.tensors import pad, unpad
from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.losses import masked_mean
from denoise.rng import Rng

# The ordered pairs of pixels of a 2 x 2 cell that share an edge; 0 1 above 2 3.
PAIRS = ((0, 1), (0, 2), (1, 3), (2, 3), (1, 0), (2, 0), (3, 1), (3, 2))


@dataclass(frozen=True)
class Neighbor2Neighbor(Method):
    """Map one pixel of every 2 x 2 cell to a neighbour in the same cell, drawn anew for every cell.

        L = mean (f(g1 y) - g2 y)^2 + lambda mean (f(g1 y) - g2 y - (g1 f(y) - g2 f(y)))^2

    with the noisy image y, its two sub-images g1 y and g2 y, and f(y) without gradient (section 4); lambda is gamma
    times the progress of training from 0 to 1, or gamma where not ``ramp``. Sub-images have half the side: the net
    sees them padded by reflection to its multiple. Pixels that the noise is known to have destroyed are no targets.
    """

    gamma: Annotated[float, Field(ge=0)] = 2.0  # weight of the regularisation
    ramp: bool = True  # the weight grows from 0 to gamma over training; False: it is gamma throughout
    needs: ClassVar[tuple[View, ...]] = ("noisy", "mask")

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the sub-images as input and target, the noisy image, and which pair was drawn in each cell."""
        height, width = (side // 2 * 2 for side in sample["noisy"].shape[-2:])
        noisy = unpad(sample["noisy"], height, width)
        pair = rng.stream("pairs").integers(len(PAIRS), height // 2, width // 2)
        mask = unpad(sample["mask"].expand(-1, -1, *sample["noisy"].shape[-2:]), height, width)
        return {
            "input": sub_image(noisy, pair, 0),
            "target": sub_image(noisy, pair, 1),
            "target_mask": sub_image(mask, pair, 1),
            "noisy": noisy,
            "pair": pair,
        }

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the loss, its reconstruction term and its regularisation (unweighted)."""
        difference = _forward_padded(net, batch["input"]) - batch["target"]
        reconstruction = masked_mean(difference.square(), batch["target_mask"])
        if self.gamma == 0:
            return {"loss": reconstruction}
        with torch.no_grad():
            restored = _forward_padded(net, batch["noisy"])
        gap = sub_image(restored, batch["pair"], 0) - sub_image(restored, batch["pair"], 1)
        regularisation = masked_mean((difference - gap).square(), batch["target_mask"])
        weight = self.gamma * (progress if self.ramp else 1)
        return {
            "loss": reconstruction + weight * regularisation,
            "reconstruction": reconstruction.detach(),
            "regularisation": regularisation.detach(),
        }


def sub_image(image: Tensor, pair: Tensor, member: int) -> Tensor:
    """Return the first (member 0) or second (1) pixel of the pair drawn in every cell.

    Args:
        image: (B, C, H, W), even sides.
        pair: (B, H/2, W/2), index into ``PAIRS``.
        member: which of the two.

    Returns:
        (B, C, H/2, W/2).
    """
    batch, channels, height, width = image.shape
    cells = F.pixel_unshuffle(image, 2).view(batch, channels, 4, height // 2, width // 2)
    position = _pairs(pair.device)[:, member][pair]
    return torch.gather(cells, 2, position[:, None, None].expand(-1, channels, -1, -1, -1)).squeeze(2)


@lru_cache(maxsize=4)
def _pairs(device: torch.device) -> Tensor:
    """Return ``PAIRS`` on a device, copied once: a copy waits for what the device is computing."""
    with torch.inference_mode(False):
        return torch.tensor(PAIRS, device=device)


def _forward_padded(net: nn.Module, image: Tensor) -> Tensor:
    """Return the net's output for an image of any size, float32."""
    height, width = image.shape[-2:]
    return unpad(net(pad(image, int(getattr(net, "multiple", 1)))).float(), height, width)

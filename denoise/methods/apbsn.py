"""AP-BSN: take an image apart into images of distant pixels, whose noise is independent (Lee et al., CVPR 2022)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from denoise.fields import Count, Share
from denoise.images.tensors import pad, unpad
from denoise.methods.base import Batch, MakeNet, Method, View, Views
from denoise.methods.losses import distance
from denoise.rng import Rng

Stride = Annotated[int, Field(ge=1, le=32)]


@dataclass(frozen=True)
class APBSN(Method):
    """Predict each pixel from others of its phase, of which neighbours are ``stride`` pixels apart in the image.

        L = mean |P^-1 f(P y) - y|                                          P of ``stride``

        restored = x,  or  mean over r of f(m_r y + (1 - m_r) x)            x = P^-1 f(P y), P of ``stride_at_test``

    with the noisy image y, P its pixels of every n-th row and column as n^2 images, and a net f with a blind spot. A
    stride of 5 leaves hardly any correlation in a camera's noise, and breaks fine detail; images are restored with 2
    (asymmetric). That leaves a grid and some noise, which the second form removes (random replacing refinement, R3):
    ``refinements`` times, each value of x is replaced by the noisy one with probability ``replaced``, and f sees the
    whole. They cost ``refinements`` further passes.
    """

    stride: Stride = 5
    stride_at_test: Stride = 2
    refinements: Count = 8  # 0: none
    replaced: Share = 0.16
    needs: ClassVar[tuple[View, ...]] = ("noisy",)
    net: ClassVar[str] = "dbsn"

    def assumes_independent_noise(self) -> bool:
        """Return whether training takes the image as it is."""
        return self.stride == 1

    def make_net(self, make: MakeNet) -> nn.Module:
        """Return the configured network in its form with a blind spot."""
        return make(blind_spot=True)

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the noisy image, cut to multiples of the stride. Nothing is drawn."""
        height, width = (size // self.stride * self.stride for size in sample["noisy"].shape[-2:])
        return {"input": unpad(sample["noisy"], height, width)}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the mean absolute difference of the output, put together again, and the noisy image."""
        return {"loss": distance("l1", by_phases(net, batch["input"], self.stride), batch["input"])}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return what the phases of the smaller stride give, refined ``refinements`` times."""
        padded = pad(noisy, self.stride_at_test)
        restored = unpad(by_phases(net, padded, self.stride_at_test), *noisy.shape[-2:])
        if not self.refinements:
            return restored
        total = torch.zeros_like(noisy)
        for number in range(self.refinements):
            from_noisy = rng.stream(f"refinement {number}").uniform(*noisy.shape[1:]) < self.replaced
            total += net(torch.where(from_noisy, noisy, restored.to(noisy.dtype)))
        return total / self.refinements


def by_phases(net: nn.Module, image: Tensor, stride: int) -> Tensor:
    """Return what a net makes of the stride^2 phases of an image (B, C, H, W), put together again."""
    channels, phases = image.shape[1], stride**2
    apart = F.pixel_unshuffle(image, stride).view(len(image), channels, phases, *(n // stride for n in image.shape[2:]))
    restored = net(apart.transpose(1, 2).flatten(0, 1))
    together = restored.reshape(len(image), phases, channels, *restored.shape[2:]).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(together, stride)

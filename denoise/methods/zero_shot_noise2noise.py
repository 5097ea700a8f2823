"""Zero-Shot Noise2Noise: learn from the one image that is to be restored (Mansour and Heckel, CVPR 2023)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from denoise.fields import Positive
from denoise.images.tensors import unpad
from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.losses import distance
from denoise.methods.single_image import learning, trained_copy
from denoise.rng import Rng


@dataclass(frozen=True)
class ZeroShotNoise2Noise(Method):
    """Train a small net on each image alone, to map one half of its pixels to the other.

        L     = L_res + L_cons                                                                   (section 3)
        L_res  = 1/2 mean (D1 y - f(D1 y) - D2 y)^2 + 1/2 mean (D2 y - f(D2 y) - D1 y)^2
        L_cons = 1/2 mean (D1 y - f(D1 y) - D1(y - f(y)))^2 + 1/2 mean (D2 y - f(D2 y) - D2(y - f(y)))^2

        restored = y - f(y)

    with the noisy image y, its two images of half the side D1 y and D2 y (``pair_downsample``), and a net f that
    predicts the noise. The noise must have mean zero and be independent from pixel to pixel.

    ``predict`` trains: a copy of the net, from the weights that it is handed, anew for every image of the batch (for
    every tile of a large one), with Adam and a learning rate halved every ``decay_every`` steps. That is 2000 forward
    and backward passes of one and a half images. The authors' notebook exists in two versions: 2000 steps, halved after
    1500, as here; and 3000 steps, halved every 1000. ``make_batch`` and ``loss`` are the same loss for a batch of many
    images.
    """

    steps: Positive = 2000
    lr: Annotated[float, Field(gt=0)] = 1e-3
    decay_every: Positive = 1500  # steps after which the learning rate is halved
    needs: ClassVar[tuple[View, ...]] = ("noisy",)
    net: ClassVar[str] = "zs_n2n"
    trained: ClassVar[bool] = False

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the noisy image, of even sides, as input. Nothing is drawn."""
        return {"input": _even(sample["noisy"])}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the loss and its two terms: residual and consistency."""
        noisy = batch["input"]
        halves = pair_downsample(noisy)
        restored = [half - net(half).float() for half in halves]
        consistent = pair_downsample(noisy - net(noisy).float())
        residual = 0.5 * (distance("l2", restored[0], halves[1]) + distance("l2", restored[1], halves[0]))
        consistency = 0.5 * sum(distance("l2", *pair) for pair in zip(restored, consistent, strict=True))
        return {
            "loss": residual + consistency,
            "residual": residual.detach(),
            "consistency": torch.as_tensor(consistency).detach(),
        }

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the noisy batch less what the net, trained on each image alone, predicts as its noise."""
        return torch.stack([self._restore(net, image) for image in torch.split(noisy, 1)]).flatten(0, 1)

    def _restore(self, net: nn.Module, noisy: Tensor) -> Tensor:
        with learning(noisy.device):
            noisy = noisy.float().clone()
            trained = trained_copy(
                net,
                lambda net, step: self.loss(net, {"input": _even(noisy)}, step / self.steps)["loss"],
                steps=self.steps,
                lr=self.lr,
                schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, self.decay_every, 0.5),
            )
            with torch.no_grad():
                restored: Tensor = noisy - trained(noisy)
            return restored


def pair_downsample(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of the two diagonals of every 2 x 2 cell, each (B, C, H/2, W/2).

    The first is of upper right and lower left, the second of upper left and lower right.
    """
    top, bottom = image[..., 0::2, :], image[..., 1::2, :]
    rising = 0.5 * (top[..., 1::2] + bottom[..., 0::2])
    falling = 0.5 * (top[..., 0::2] + bottom[..., 1::2])
    return rising, falling


def _even(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    return unpad(image, height // 2 * 2, width // 2 * 2)

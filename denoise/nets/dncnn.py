"""DnCNN (Zhang et al. 2017, "Beyond a Gaussian denoiser")."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import Size, conv, init_normal

MIN_SCALE = 0.025  # smallest initial magnitude of a normalisation's scale


class DnCNN(nn.Module):
    """3x3 convolutions with batch normalisation that predict the noise, which is subtracted from the input.

    Depth 17 is DnCNN-S (556,097 parameters for grey images), 20 is DnCNN-B. As in the authors' training code weights
    start He normal, the scales of the normalisations start normal with variance 2 / (9 features) and a magnitude of at
    least 0.025, and eps is 1e-4; the first and last layer have a bias (the paper's; R2R's port has none). Running
    statistics follow at PyTorch's rate 0.1: the 0.9 of a widely copied port is Keras's number in PyTorch's inverse
    sense, and keeps little more than the last batch.

    Args:
        channels: of the images.
        outputs: channels to return. As many as the images have: input minus residual; else plain numbers.
        depth: number of convolutions.
        features: feature maps between them.
        batch_norm: whether to normalise; without it every convolution has a bias.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        depth: Annotated[int, Field(ge=2, le=256)] = 17,
        features: Size = 64,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.predicts_image = outputs == channels
        self.first = conv(channels, features)
        self.hidden = nn.Sequential(*(layer for _ in range(depth - 2) for layer in _block(features, batch_norm)))
        self.last = conv(features, outputs, gain=1.0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        output: Tensor = self.last(self.hidden(F.relu(self.first(noisy), inplace=True)))
        return noisy - output if self.predicts_image else output


def _block(features: int, batch_norm: bool) -> list[nn.Module]:
    layer = conv(features, features, bias=not batch_norm)
    if not batch_norm:
        return [layer, nn.ReLU(inplace=True)]
    normalise = nn.BatchNorm2d(features, eps=1e-4)
    init_normal(normalise.weight, std=(2 / (9 * features)) ** 0.5)
    scale = normalise.weight.data
    scale.copy_(scale.abs().clamp_min(MIN_SCALE).copysign(scale))
    return [layer, normalise, nn.ReLU(inplace=True)]

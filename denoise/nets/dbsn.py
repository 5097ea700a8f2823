"""The blind-spot network of AP-BSN: a masked convolution, then dilated ones that step over it (CVPR 2022)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import Size, conv

BLOCKS = 9  # residual blocks of each branch
LEAST_MAPS = 16  # before the last layer: of fewer, ReLU may leave none alive
DILATIONS = (2, 3)  # of the branches; their masked convolutions have sides of 3 and 5
GAIN = 3**-0.5  # of the residual blocks, that of torch's own default: with He's sqrt 2, values grow with every sum


class DBSN(nn.Module):
    """Two branches of dilated convolutions behind a convolution without its centre, joined by 1x1 convolutions.

    3,656,131 parameters for 3 channels in and out. A branch of dilation d begins with a kernel of side 2 d - 1 whose
    centre is masked, so it sees the pixels at -(d - 1) .. d - 1 but for the middle one; all further steps are by
    multiples of d, and none leads back to the pixel. The blind spot is that one pixel, whatever noise is like: AP-BSN
    takes the pixels of an image apart first. The form without a blind spot has no mask. Sides may be any.
    """

    largest_shift: ClassVar[int] = 1  # the blind spot cannot be widened
    pixels_per_pass: ClassVar[int] = 600 * 600  # of an image: two branches of 128 maps

    def __init__(self, channels: int, outputs: int, blind_spot: bool = False, features: Size = 128) -> None:
        super().__init__()
        self.blind_spot = blind_spot
        self.first = conv(channels, features, kernel=1)
        self.branches = nn.ModuleList(_Branch(features, dilation, blind_spot) for dilation in DILATIONS)
        half = max(features // 2, LEAST_MAPS)
        self.tail = nn.Sequential(
            *(conv(len(DILATIONS) * features, features, kernel=1), nn.ReLU()),
            *(conv(features, half, kernel=1), nn.ReLU()),
            *(conv(half, half, kernel=1), nn.ReLU()),
        )
        self.last = conv(half, outputs, kernel=1, gain=1.0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        maps = F.relu(self.first(noisy))
        last: Tensor = self.last(self.tail(torch.cat([branch(maps) for branch in self.branches], dim=1)))
        return last


class _Branch(nn.Module):
    """The masked convolution, two 1x1 ones, the residual blocks, and a 1x1 one."""

    def __init__(self, features: int, dilation: int, blind_spot: bool) -> None:
        super().__init__()
        self.blind_spot = blind_spot
        self.masked = conv(features, features, kernel=2 * dilation - 1)
        self.after = nn.Sequential(*(conv(features, features, kernel=1) for _ in range(2)))
        self.blocks = nn.Sequential(*(_Block(features, dilation) for _ in range(BLOCKS)))
        self.end = conv(features, features, kernel=1)

    def forward(self, maps: Tensor) -> Tensor:
        weight = self.masked.weight
        if self.blind_spot:
            centre = weight.shape[-1] // 2
            mask = torch.ones_like(weight[0, 0])
            mask[centre, centre] = 0
            weight = weight * mask
        maps = F.relu(F.conv2d(maps, weight, self.masked.bias, padding=self.masked.padding))
        for layer in self.after:
            maps = F.relu(layer(maps))
        return F.relu(self.end(self.blocks(maps)))


class _Block(nn.Module):
    """A dilated 3x3 and a 1x1 convolution with a ReLU between, and the sum with the input."""

    def __init__(self, features: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.dilated = conv(features, features, gain=GAIN)
        self.point = conv(features, features, kernel=1, gain=GAIN)

    def forward(self, maps: Tensor) -> Tensor:
        wide = F.conv2d(maps, self.dilated.weight, self.dilated.bias, padding=self.dilation, dilation=self.dilation)
        result: Tensor = maps + self.point(F.relu(wide))
        return result

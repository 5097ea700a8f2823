"""TM-BSN: a network with a blind spot in the shape of a diamond (CVPR 2026, https://arxiv.org/abs/2604.04484)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import Size, conv, init_normal
from denoise.nets.upsampling import memory_format

GROUPS, BLOCKS = 5, 5
TURNS = 4  # by 90 degrees
TAPS = 6  # of the nine of a kernel, that the mask leaves
GAIN = 3**-0.5  # of masked convolutions, that of torch's own default: 25 sums of He's sqrt 2 would overflow


class TMBSN(nn.Module):
    """57 convolutions that see half of the plane, cut along a diagonal, in four rotations; then three 1x1 convolutions.

    1,350,339 parameters for 3 channels in and out. The 3x3 kernels are masked to the taps on and above their diagonal,
    so that a pixel at (dy, dx) is seen where dx - dy >= 0. Shifted down by s rows, or left by s columns, the maps leave
    dx - dy >= s; a shift along the diagonal would leave gaps, so both are taken. The four rotations together leave out
    the diamond |dx| + |dy| < s around a pixel: with s = 5, 41 pixels, where a square of its width has 81. The weights
    are the same for every s; with s = 0 there is no hole. That is the form without a blind spot as well.

    Noise that demosaicing has spread is correlated in this shape. Sides may be any.
    """

    pixels_per_pass: ClassVar[int] = 600 * 600  # of an image: eight times 48 maps a pixel, as unet_ssdn has four of 96

    def __init__(self, channels: int, outputs: int, blind_spot: bool = False, features: Size = 48) -> None:
        super().__init__()
        self.blind_spot = blind_spot
        self.first = TriangularConv(channels, features)
        self.groups = nn.Sequential(*(_Group(features) for _ in range(GROUPS)))
        self.deepest = TriangularConv(features, features)
        width = 2 * TURNS * features
        self.nin_a = conv(width, width, kernel=1)
        self.nin_b = conv(width, width // 4, kernel=1)
        self.last = conv(width // 4, outputs, kernel=1, gain=1.0)

    def forward(self, noisy: Tensor, shift: int = 1) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W); with a blind spot |dx| + |dy| < ``shift``."""
        return self.head(self.body(noisy), shift)

    def body(self, noisy: Tensor) -> Sequence[Tensor]:
        """Return what ``head`` needs of an image, whatever the shift: the maps of each rotation."""
        layout = memory_format(noisy)  # which rotations do not preserve
        rotated = [torch.rot90(noisy, turn, (2, 3)).contiguous(memory_format=layout) for turn in range(TURNS)]
        return [self._half_plane(image) for image in rotated]

    def head(self, maps: Sequence[Tensor], shift: int = 1) -> Tensor:
        """Return (B, outputs, H, W) from what ``body`` returned."""
        shift = shift if self.blind_spot else 0
        shifted = [torch.cat([_shift_down(x, shift), _shift_left(x, shift)], dim=1) for x in maps]
        turned = torch.cat([torch.rot90(x, -turn, (2, 3)) for turn, x in enumerate(shifted)], dim=1)
        x = turned.contiguous(memory_format=memory_format(maps[0]))
        last: Tensor = self.last(F.relu(self.nin_b(F.relu(self.nin_a(x)))))
        return last

    def _half_plane(self, noisy: Tensor) -> Tensor:
        first = self.first(noisy)
        maps: Tensor = first + self.deepest(self.groups(first))
        return maps


class TriangularConv(nn.Conv2d):
    """A 3x3 convolution that keeps the size, and whose masked taps count for nothing and never change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        init_normal(self.weight, std=GAIN / (TAPS * inputs) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the convolution to (B, inputs, H, W)."""
        mask = torch.ones_like(self.weight[0, 0]).triu()  # a product, as the triangle itself has another layout
        return F.conv2d(maps, self.weight * mask, self.bias, padding=1)


class _Group(nn.Module):
    """Residual blocks, a convolution, and the sum with the input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(features) for _ in range(BLOCKS)))
        self.end = TriangularConv(features, features)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = maps + self.end(self.blocks(maps))
        return result


class _Block(nn.Module):
    """Two convolutions with a ReLU between, and the sum with the input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = TriangularConv(features, features)
        self.second = TriangularConv(features, features)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = maps + self.second(F.relu(self.first(maps)))
        return result


def _shift_down(maps: Tensor, rows: int) -> Tensor:
    rows = min(rows, maps.shape[2])
    return F.pad(maps[:, :, : maps.shape[2] - rows], (0, 0, rows, 0))


def _shift_left(maps: Tensor, columns: int) -> Tensor:
    return F.pad(maps[:, :, :, min(columns, maps.shape[3]) :], (0, min(columns, maps.shape[3])))

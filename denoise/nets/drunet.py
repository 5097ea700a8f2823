"""DRUNet (Zhang et al. 2021, "Plug-and-play image restoration with deep denoiser prior", section 3)."""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import Size, conv, init_normal

SCALES = 4
BRANCH_GAIN = 0.2  # of the second convolution of a residual block: at 1.4 the signal would explode over 28 blocks


class DRUNet(nn.Module):
    """A U-Net of residual blocks: four scales, strided convolutions down, transposed ones up, sums as skips.

    No bias anywhere, so an image twice as bright gives an output twice as bright. The authors feed a map of the noise
    level beside the image; this form has none (blind). 32,640,384 parameters for 3 channels in and out, 32,640,960
    with the authors' fourth channel. Sides must be multiples of ``multiple``.

    Args:
        channels: of the images.
        outputs: channels to return.
        features: feature maps of the first scale; they double with each.
        blocks: residual blocks of a scale, on the way down and on the way up.
    """

    multiple: ClassVar[int] = 2 ** (SCALES - 1)

    def __init__(self, channels: int, outputs: int, features: Size = 64, blocks: Size = 4) -> None:
        super().__init__()
        widths = [features * 2**scale for scale in range(SCALES)]
        steps = list(pairwise(widths))
        self.head = conv(channels, features, gain=1.0, bias=False)
        self.down = nn.ModuleList(nn.Sequential(*_blocks(fine, blocks), _halve(fine, coarse)) for fine, coarse in steps)
        self.body = nn.Sequential(*_blocks(widths[-1], blocks))
        self.up = nn.ModuleList(  # by scale, like down
            nn.Sequential(_double(coarse, fine), *_blocks(fine, blocks)) for fine, coarse in steps
        )
        self.last = conv(features, outputs, gain=1.0, bias=False)

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        skips = [self.head(noisy)]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = self.body(skips[-1])
        for up in reversed(self.up):
            x = up(x + skips.pop())
        output: Tensor = self.last(x + skips.pop())
        return output


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = conv(width, width, bias=False)
        self.conv2 = conv(width, width, gain=BRANCH_GAIN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        branch: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True))
        return x + branch


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(width) for _ in range(count)]


def _halve(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 2, stride=2, bias=False)
    init_normal(layer.weight, std=(4 * inputs) ** -0.5)
    return layer


def _double(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    init_normal(layer.weight, std=inputs**-0.5)  # one input pixel reaches an output pixel
    return layer

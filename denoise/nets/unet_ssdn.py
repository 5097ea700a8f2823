"""The U-Net of Laine et al. 2019, with and without a blind spot (appendix; section 2 for the blind spot)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import conv
from denoise.nets.upsampling import concat_upsampled, conv_above, memory_format, pad_top, upsampled_conv

SLOPE = 0.1  # of every LeakyReLU
TURNS = 4  # by 90 degrees


class UNetSSDN(nn.Module):
    """Five levels, 48 feature maps down and 96 up, then three 1x1 convolutions.

    1,102,371 parameters for 3 channels in and out. In the form with a blind spot (1,268,547 parameters, about 4.4 times
    the arithmetic) an output pixel depends on everything around the input pixel at its place and not on that pixel:
    the U-Net sees the image in four rotations, and in each of them only the rows above, because

    - a 3x3 convolution has its two rows of padding on top, so that it reaches its own row and the two above;
    - a pool is preceded by a shift down by one row, so that a row of the coarser map never holds a later row;
    - one last shift down by one row excludes a row's own values.

    Rotated back and stacked, the four half planes are the whole image without the pixel, and 1x1 convolutions preserve
    that. Where the last shift is by s rows, chosen at each call, the hole is the square of side 2 s - 1 around the
    pixel (Chen et al., AT-BSN, CVPR 2024); with s = 0 there is none. The weights are the same for every s.
    Sides must be multiples of ``multiple``.
    """

    multiple: ClassVar[int] = 32
    pixels_per_pass: ClassVar[int] = 600 * 600  # of an image: with a blind spot, 3.4 kB of memory a pixel in bf16

    def __init__(self, channels: int, outputs: int, blind_spot: bool = False) -> None:
        super().__init__()
        self.blind_spot = blind_spot
        self.enc_conv0 = conv(channels, 48)
        self.enc_conv1 = conv(48, 48)
        self.enc_conv2 = conv(48, 48)
        self.enc_conv3 = conv(48, 48)
        self.enc_conv4 = conv(48, 48)
        self.enc_conv5 = conv(48, 48)
        self.enc_conv6 = conv(48, 48)
        self.dec_conv5a = conv(48 + 48, 96)
        self.dec_conv5b = conv(96, 96)
        self.dec_conv4a = conv(96 + 48, 96)
        self.dec_conv4b = conv(96, 96)
        self.dec_conv3a = conv(96 + 48, 96)
        self.dec_conv3b = conv(96, 96)
        self.dec_conv2a = conv(96 + 48, 96)
        self.dec_conv2b = conv(96, 96)
        self.dec_conv1a = conv(96 + channels, 96)
        self.dec_conv1b = conv(96, 96)
        width = TURNS * 96 if blind_spot else 96
        self.nin_a = conv(width, width, kernel=1)
        self.nin_b = conv(width, 96, kernel=1)
        self.nin_c = conv(96, outputs, kernel=1, gain=1.0)

    @property
    def last(self) -> nn.Conv2d:
        """The last layer."""
        return self.nin_c

    @property
    def smallest_crop(self) -> int:
        """The least side of training crops from which every weight learns, in pixels.

        With a blind spot the deepest convolution reaches two rows up: in a map of fewer than three rows, the upper row
        of its weights never meets anything but padding.
        """
        return 3 * self.multiple if self.blind_spot else self.multiple

    def forward(self, noisy: Tensor, shift: int = 1) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W); with a blind spot of side 2 ``shift`` - 1, at most 63."""
        return self.head(self.body(noisy), shift)

    def body(self, noisy: Tensor) -> Sequence[Tensor]:
        """Return what ``head`` needs of an image, whatever the shift: the maps of each rotation, or of the image."""
        if not self.blind_spot:
            return [self._maps(noisy)]
        return self._above(noisy, together=noisy.shape[-2] == noisy.shape[-1])

    def head(self, maps: Sequence[Tensor], shift: int = 1) -> Tensor:
        """Return (B, outputs, H, W) from what ``body`` returned."""
        x = _without_pixel(maps, shift) if self.blind_spot else maps[0]
        x = x.permute(0, 2, 3, 1)  # a 1x1 convolution is a matrix product over the channels, and faster as one
        for layer in (self.nin_a, self.nin_b):
            x = F.leaky_relu(_conv1x1(layer, x), SLOPE)  # not in place: a view, whose gradient would be copied
        return _conv1x1(self.nin_c, x).permute(0, 3, 1, 2)

    def _above(self, noisy: Tensor, together: bool) -> Sequence[Tensor]:
        """Return the maps of the image turned by 0 to 3 quarters, each of a pixel's own row and all above.

        The rotations run as one batch if they have one shape (``together``), else as two.
        """
        layout = memory_format(noisy)  # which rotations do not preserve
        rotated = [torch.rot90(noisy, turn, (2, 3)) for turn in range(TURNS)]
        if together:
            return self._maps(torch.cat(rotated).contiguous(memory_format=layout)).chunk(TURNS)
        halves = (torch.cat(rotated[start::2]).contiguous(memory_format=layout) for start in (0, 1))
        upright, sideways = (self._maps(half).chunk(2) for half in halves)
        return upright[0], sideways[0], upright[1], sideways[1]

    def _maps(self, noisy: Tensor) -> Tensor:
        """Return (B, 96, H, W), the output of the convolutions before the 1x1 ones."""
        x = self._conv(self.enc_conv0, noisy)
        pool1 = self._pool(self._conv(self.enc_conv1, x))
        pool2 = self._pool(self._conv(self.enc_conv2, pool1))
        pool3 = self._pool(self._conv(self.enc_conv3, pool2))
        pool4 = self._pool(self._conv(self.enc_conv4, pool3))
        pool5 = self._pool(self._conv(self.enc_conv5, pool4))
        x = self._conv(self.enc_conv6, pool5)
        x = self._conv(self.dec_conv5b, self._conv(self.dec_conv5a, concat_upsampled(x, pool4)))
        x = self._conv(self.dec_conv4b, self._conv(self.dec_conv4a, concat_upsampled(x, pool3)))
        x = self._conv(self.dec_conv3b, self._conv(self.dec_conv3a, concat_upsampled(x, pool2)))
        x = self._conv(self.dec_conv2b, self._conv(self.dec_conv2a, concat_upsampled(x, pool1)))
        x = _relu(upsampled_conv(self.dec_conv1a, x, noisy, above=2 if self.blind_spot else 1))
        return self._conv(self.dec_conv1b, x)

    def _conv(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        return _relu(conv_above(layer, x) if self.blind_spot else layer(x))

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(_shift_down(x) if self.blind_spot else x, 2)


def _without_pixel(above: Sequence[Tensor], shift: int) -> Tensor:
    """Return (B, 4 * 96, H, W), features of the half planes above, right of, below and left of each pixel.

    They begin ``shift`` rows or columns away from it.
    """
    pixels = [_shift_down(x, shift).permute(0, 2, 3, 1) for x in above]  # channels last: 1x1 convolutions are fastest
    stacked = torch.cat([torch.rot90(x, -turn, (1, 2)) for turn, x in enumerate(pixels)], dim=3)
    return stacked.permute(0, 3, 1, 2)


def _shift_down(x: Tensor, rows: int = 1) -> Tensor:
    """Move every row down by a number of rows: the first become zero, the last are dropped."""
    return pad_top(x[:, :, :-rows], rows) if rows else x


def _conv1x1(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution to (B, H, W, C)."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def _relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE, inplace=True)

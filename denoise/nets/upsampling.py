"""Nearest upsampling by two, concatenated with a skip and followed by a 3x3 convolution: the decoder of a U-Net."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_PIXELS = 48 * 48  # of coarse maps, from which folding the weights costs less than it saves


def upsampled_conv(layer: nn.Conv2d, coarse: Tensor, skip: Tensor, above: int = 1) -> Tensor:
    """Return the 3x3 convolution of upsampled coarse maps and a skip of few channels.

    Where a net restores large maps on a CPU, by ``coarse_conv``, which is faster there and differs by rounding.

    Args:
        layer: of as many inputs as ``coarse`` and ``skip`` have channels together.
        coarse: (B, C, H, W).
        skip: (B, C', 2H, 2W).
        above: rows of zeros on top of the maps, 1 or 2; there are 2 - above below, and one column on each side.
    """
    learns = layer.training or torch.is_grad_enabled()
    if coarse.device.type == "cpu" and not learns and coarse.shape[2] * coarse.shape[3] >= LEAST_PIXELS:
        return coarse_conv(layer, coarse, skip, above)
    maps = concat_upsampled(coarse, skip)
    convolved: Tensor = conv_above(layer, maps) if above == 2 else layer(maps)
    return convolved


def upsample(coarse: Tensor) -> Tensor:
    """Return (B, C, 2H, 2W), nearest upsampling of (B, C, H, W)."""
    fine: Tensor = _Upsample.apply(coarse)  # type: ignore[no-untyped-call]
    return fine


def concat_upsampled(coarse: Tensor, skip: Tensor) -> Tensor:
    """Return (B, C + C', 2H, 2W): coarse maps (B, C, H, W) upsampled, and a skip (B, C', 2H, 2W)."""
    skip = skip.to(coarse.dtype)
    if skip.shape[1] == 1 and coarse.stride(1) == 1:
        # One channel lies the same way in both formats, but cat and the convolution go by the strides.
        height, width = skip.shape[2:]
        skip = skip.contiguous().as_strided(skip.shape, (height * width, 1, width, 1))
    return torch.cat([upsample(coarse), skip], dim=1)


def coarse_conv(layer: nn.Conv2d, coarse: Tensor, skip: Tensor, above: int = 1) -> Tensor:
    """Return what ``upsampled_conv`` returns, from one 2x2 convolution of the coarse maps: no gradients, channels last.

    Pixels of one phase (of the four places in a block of 2x2) reach two rows and two columns of blocks. In an upsampled
    map a block holds one value, so taps that fall into one block are summed; the blocks of a skip are four channels.
    That is 16 products a block in place of 36 for upsampled maps, and 64 for a skip, which has fewer.
    """
    (batch, channels, height, width), outputs = coarse.shape, layer.out_channels
    with torch.autocast("cpu", enabled=False):  # which would round the weights before they are summed
        weight = _fold(layer.weight, channels, above).contiguous(memory_format=torch.channels_last)
    blocks = F.pixel_unshuffle(skip.to(coarse.dtype), 2).contiguous(memory_format=torch.channels_last)
    bias = None if layer.bias is None else layer.bias.repeat(4)
    phases = F.conv2d(torch.cat([coarse, blocks], dim=1), weight, bias, padding=1)
    shape = (batch, outputs, 2 * height, 2 * width)
    fine = torch.empty(shape, dtype=phases.dtype, memory_format=torch.channels_last)
    for number, phase in enumerate(phases.chunk(4, dim=1)):
        row, column = divmod(number, 2)
        top = _first_block(row, above) + 1
        fine[:, :, row::2, column::2] = phase[:, :, top : top + height, column : column + width]
    return fine


def conv_above(layer: nn.Conv2d, maps: Tensor) -> Tensor:
    """Apply a 3x3 convolution that reaches a pixel's own row and the two above."""
    return F.conv2d(pad_top(maps, 2), layer.weight, layer.bias, padding=(0, 1))


def pad_top(maps: Tensor, rows: int) -> Tensor:
    """Add rows of zeros on top; unlike F.pad this writes once and its gradient is a view."""
    zeros = maps.new_zeros(*maps.shape[:2], rows, maps.shape[3])
    return torch.cat([zeros.contiguous(memory_format=memory_format(maps)), maps], dim=2)  # cat keeps a common format


def memory_format(maps: Tensor) -> torch.memory_format:
    """Return the memory format of (B, C, H, W)."""
    return torch.channels_last if maps.stride(1) == 1 else torch.contiguous_format


class _Upsample(torch.autograd.Function):
    """Nearest upsampling whose gradient reads the slice that cat's gradient is: torch's own copies it first."""

    @staticmethod
    def forward(ctx: Any, coarse: Tensor) -> Tensor:
        return F.interpolate(coarse, scale_factor=2, mode="nearest")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return F.avg_pool2d(gradients[0], 2, divisor_override=1)  # sums in torch's own order and precision


def _fold(weight: Tensor, channels: int, above: int) -> Tensor:
    """Return (4 * outputs, channels + 4 * others, 2, 2), the weights of ``coarse_conv``, from (outputs, inputs, 3, 3).

    The first ``channels`` inputs are upsampled maps, the others come from the skip.
    """
    outputs = len(weight)
    taps = _taps(above).to(weight.dtype)
    upsampled = weight[:, :channels].reshape(-1, 9) @ taps.sum(2).flatten(1)
    upsampled = upsampled.view(outputs, channels, 4, 2, 2).permute(2, 0, 1, 3, 4).flatten(0, 1)
    skip = weight[:, channels:].reshape(-1, 9) @ taps.flatten(1)
    skip = skip.view(outputs, -1, 4, 4, 2, 2).permute(2, 0, 1, 3, 4, 5).flatten(2, 3).flatten(0, 1)
    return torch.cat([upsampled, skip], dim=1)


@cache
def _taps(above: int) -> Tensor:
    """Return (9, 4, 4, 4): which of the 3x3 taps of a phase reads which pixel of which of its 2x2 blocks."""
    rows, columns = _taps_along_side(above), _taps_along_side(1)
    return torch.einsum("yabu,xcdv->yxacbduv", rows, columns).reshape(9, 4, 4, 4)


def _taps_along_side(before: int) -> Tensor:
    """Return (3, 2, 2, 2), the same along one side: 1 where a tap of a phase reads a pixel of a block, else 0."""
    taps = torch.zeros(3, 2, 2, 2)
    for tap in range(3):
        for phase in range(2):
            place = tap + phase - before - 2 * _first_block(phase, before)
            taps[tap, phase, place % 2, place // 2] = 1
    return taps


def _first_block(phase: int, before: int) -> int:
    """Return the first block that a phase reaches, counted from its own."""
    return (phase - before) // 2

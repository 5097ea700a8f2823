"""The U-Net of Noise2Noise (Lehtinen et al. 2018, appendix A.1, table 2)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1  # of every LeakyReLU


class UNetN2N(nn.Module):
    """Five levels, 48 feature maps down and 96 up, nearest upsampling, skips from the pooled maps and from the input.

    991,203 parameters for 3 channels. Sides must be multiples of ``multiple``.
    """

    multiple: ClassVar[int] = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enc_conv0 = _conv(channels, 48)
        self.enc_conv1 = _conv(48, 48)
        self.enc_conv2 = _conv(48, 48)
        self.enc_conv3 = _conv(48, 48)
        self.enc_conv4 = _conv(48, 48)
        self.enc_conv5 = _conv(48, 48)
        self.enc_conv6 = _conv(48, 48)
        self.dec_conv5a = _conv(48 + 48, 96)
        self.dec_conv5b = _conv(96, 96)
        self.dec_conv4a = _conv(96 + 48, 96)
        self.dec_conv4b = _conv(96, 96)
        self.dec_conv3a = _conv(96 + 48, 96)
        self.dec_conv3b = _conv(96, 96)
        self.dec_conv2a = _conv(96 + 48, 96)
        self.dec_conv2b = _conv(96, 96)
        self.dec_conv1a = _conv(96 + channels, 64)
        self.dec_conv1b = _conv(64, 32)
        self.dec_conv1c = _conv(32, channels, gain=1.0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = _relu(self.enc_conv0(noisy))
        pool1 = F.max_pool2d(_relu(self.enc_conv1(x)), 2)
        pool2 = F.max_pool2d(_relu(self.enc_conv2(pool1)), 2)
        pool3 = F.max_pool2d(_relu(self.enc_conv3(pool2)), 2)
        pool4 = F.max_pool2d(_relu(self.enc_conv4(pool3)), 2)
        pool5 = F.max_pool2d(_relu(self.enc_conv5(pool4)), 2)
        x = _relu(self.enc_conv6(pool5))
        x = _relu(self.dec_conv5b(_relu(self.dec_conv5a(_up(x, pool4)))))
        x = _relu(self.dec_conv4b(_relu(self.dec_conv4a(_up(x, pool3)))))
        x = _relu(self.dec_conv3b(_relu(self.dec_conv3a(_up(x, pool2)))))
        x = _relu(self.dec_conv2b(_relu(self.dec_conv2a(_up(x, pool1)))))
        x = _relu(self.dec_conv1b(_relu(self.dec_conv1a(_up(x, noisy)))))
        restored: Tensor = self.dec_conv1c(x)
        return restored


def _conv(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Conv2d:
    """3x3 convolution, He normal with fan-in (gain sqrt 2 whatever the slope, 1 for a linear last layer), zero bias."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.normal_(conv.weight, std=gain / (inputs * 9) ** 0.5)
    assert conv.bias is not None  # noqa: S101 - for the type checker
    nn.init.zeros_(conv.bias)
    return conv


def _relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _up(x: Tensor, skip: Tensor) -> Tensor:
    return torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip.to(x.dtype)], dim=1)

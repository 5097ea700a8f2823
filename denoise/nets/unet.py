"""The U-Net of Noise2Noise (Lehtinen et al. 2018, appendix A.1, table 2)."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import conv
from denoise.nets.upsampling import concat_upsampled, upsampled_conv

SLOPE = 0.1  # of every LeakyReLU


class UNetN2N(nn.Module):
    """Five levels, 48 feature maps down and 96 up, nearest upsampling, skips from the pooled maps and from the input.

    991,203 parameters for 3 channels. Sides must be multiples of ``multiple``.
    """

    multiple: ClassVar[int] = 32

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
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
        self.dec_conv1a = conv(96 + channels, 64)
        self.dec_conv1b = conv(64, 32)
        self.dec_conv1c = conv(32, outputs, gain=1.0)

    @property
    def last(self) -> nn.Conv2d:
        """The last layer."""
        return self.dec_conv1c

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        x = _relu(self.enc_conv0(noisy))
        pool1 = F.max_pool2d(_relu(self.enc_conv1(x)), 2)
        pool2 = F.max_pool2d(_relu(self.enc_conv2(pool1)), 2)
        pool3 = F.max_pool2d(_relu(self.enc_conv3(pool2)), 2)
        pool4 = F.max_pool2d(_relu(self.enc_conv4(pool3)), 2)
        pool5 = F.max_pool2d(_relu(self.enc_conv5(pool4)), 2)
        x = _relu(self.enc_conv6(pool5))
        x = _relu(self.dec_conv5b(_relu(self.dec_conv5a(concat_upsampled(x, pool4)))))
        x = _relu(self.dec_conv4b(_relu(self.dec_conv4a(concat_upsampled(x, pool3)))))
        x = _relu(self.dec_conv3b(_relu(self.dec_conv3a(concat_upsampled(x, pool2)))))
        x = _relu(self.dec_conv2b(_relu(self.dec_conv2a(concat_upsampled(x, pool1)))))
        x = _relu(self.dec_conv1b(_relu(upsampled_conv(self.dec_conv1a, x, noisy))))
        restored: Tensor = self.dec_conv1c(x)
        return restored


def _relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE, inplace=True)

"""The U-Net of Noise2Noise (Lehtinen et al. 2018, appendix A.1, table 2)."""

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import conv
from denoise.nets.upsampling import concat_upsampled, upsampled_conv

SLOPE = 0.1  # of every LeakyReLU

Activation = Literal["leaky_relu", "relu"]
Initialisation = Literal["he_normal", "kaiming_uniform"]


class UNetN2N(nn.Module):
    """Five levels, 48 feature maps down and 96 up, nearest upsampling, skips from the pooled maps and from the input.

    991,203 parameters for 3 channels. Sides must be multiples of ``multiple``.

    Args:
        channels: of the images.
        outputs: channels to return.
        activation: after every convolution but the last: LeakyReLU of slope 0.1, as in the paper, or ReLU.
        init: of the weights; biases are zero. ``he_normal``: by ``layers.conv``. ``kaiming_uniform``: torch's
            ``kaiming_uniform_`` with fan-in and the gain of the activation, sqrt(2 / (1 + slope^2)); the last layer,
            which has no activation, with gain 1. Xu, Song and Peng (EE-559) write that they took it, with ReLU.
    """

    multiple: ClassVar[int] = 32

    def __init__(
        self,
        channels: int,
        outputs: int,
        activation: Activation = "leaky_relu",
        init: Initialisation = "he_normal",
    ) -> None:
        super().__init__()
        self.slope = SLOPE if activation == "leaky_relu" else 0.0
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
        if init == "kaiming_uniform":
            self._init_kaiming_uniform()

    @property
    def last(self) -> nn.Conv2d:
        """The last layer."""
        return self.dec_conv1c

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        x = self._relu(self.enc_conv0(noisy))
        pool1 = F.max_pool2d(self._relu(self.enc_conv1(x)), 2)
        pool2 = F.max_pool2d(self._relu(self.enc_conv2(pool1)), 2)
        pool3 = F.max_pool2d(self._relu(self.enc_conv3(pool2)), 2)
        pool4 = F.max_pool2d(self._relu(self.enc_conv4(pool3)), 2)
        pool5 = F.max_pool2d(self._relu(self.enc_conv5(pool4)), 2)
        x = self._relu(self.enc_conv6(pool5))
        x = self._relu(self.dec_conv5b(self._relu(self.dec_conv5a(concat_upsampled(x, pool4)))))
        x = self._relu(self.dec_conv4b(self._relu(self.dec_conv4a(concat_upsampled(x, pool3)))))
        x = self._relu(self.dec_conv3b(self._relu(self.dec_conv3a(concat_upsampled(x, pool2)))))
        x = self._relu(self.dec_conv2b(self._relu(self.dec_conv2a(concat_upsampled(x, pool1)))))
        x = self._relu(self.dec_conv1b(self._relu(upsampled_conv(self.dec_conv1a, x, noisy))))
        restored: Tensor = self.dec_conv1c(x)
        return restored

    def _relu(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope, inplace=True) if self.slope else F.relu(x, inplace=True)

    def _init_kaiming_uniform(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
                kind: Literal["linear", "leaky_relu"] = "linear" if layer is self.last else "leaky_relu"
                nn.init.kaiming_uniform_(layer.weight, a=self.slope, nonlinearity=kind)  # ReLU has slope 0

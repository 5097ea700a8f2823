"""The U-Nets of Noise2Void (Krull et al. 2019) and Noise2Void 2 (Höck et al. 2022), as CSBDeep builds them."""

from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import Size, conv
from denoise.nets.upsampling import concat_upsampled, upsample

MEAN, DEVIATION = 0.5, 0.25  # roughly those of images in [0, 1]: the layers see centred values of unit scale


class UNetN2V(nn.Module):
    """Two 3x3 convolutions a level with batch normalisation, feature maps that double with each level, 1x1 at the end.

    With 96 features and the other defaults the network of Noise2Void's BSD68 experiment, 2,990,209 parameters for grey
    images; 32 features are the default of the authors' package. Differences from it: normalisation is fixed
    (``MEAN``, ``DEVIATION``) instead of by mean and deviation of the training data, channels share one network
    instead of one network each, a convolution before a normalisation has no bias (which would cancel), the
    running statistics follow at PyTorch's rate 0.1 and not Keras's 0.01, too slow for short training, and weights are
    initialised by ``layers.conv``.

    Args:
        channels: of the images.
        outputs: channels to return. As many as the images have: an image; else plain numbers.
        depth: how many times the sides are halved; they must be multiples of 2^depth (``multiple``).
        features: feature maps of the first level.
        batch_norm: whether to normalise after every convolution but the last.
        residual: whether the network predicts the difference to its input.
        blurpool: whether to blur before a pool subsamples, which avoids the checkerboards of Noise2Void.
        top_skip: whether the first level has a skip connection.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        depth: Size = 2,
        features: Size = 32,
        batch_norm: bool = True,
        residual: bool = True,
        blurpool: bool = False,
        top_skip: bool = True,
    ) -> None:
        super().__init__()
        self.multiple = 2**depth
        self.residual, self.blurpool, self.top_skip = residual, blurpool, top_skip
        self.predicts_image = outputs == channels
        widths = [features * 2**level for level in range(depth)]

        def pair(inputs: int, middle: int, width: int) -> nn.Sequential:
            return nn.Sequential(*_block(inputs, middle, batch_norm), *_block(middle, width, batch_norm))

        self.down = nn.ModuleList(
            pair(inputs, width, width) for inputs, width in zip([channels, *widths], widths, strict=False)
        )
        self.middle = pair(widths[-1], 2 * widths[-1], widths[-1])
        self.up = nn.ModuleList(  # by level, like down
            pair(width * (2 if level or top_skip else 1), width, widths[max(level - 1, 0)])
            for level, width in enumerate(widths)
        )
        self.last = conv(features, outputs, kernel=1, gain=1.0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        x = (noisy - MEAN) / DEVIATION
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = _max_blur_pool(x) if self.blurpool else F.max_pool2d(x, 2)
        x = self.middle(x)
        for depth, level in reversed(list(enumerate(self.up))):
            x = level(concat_upsampled(x, skips[depth]) if depth or self.top_skip else upsample(x))
        output: Tensor = self.last(x)
        if not self.predicts_image:
            return output
        return (noisy if self.residual else MEAN) + DEVIATION * output


class UNetN2V2(UNetN2V):
    """The network of Noise2Void 2: max-blur-pools, not residual, without the first level's skip."""

    def __init__(
        self, channels: int, outputs: int, depth: Size = 2, features: Size = 32, batch_norm: bool = True
    ) -> None:
        super().__init__(channels, outputs, depth, features, batch_norm, residual=False, blurpool=True, top_skip=False)


def _block(inputs: int, width: int, batch_norm: bool) -> list[nn.Module]:
    normalise = [nn.BatchNorm2d(width, eps=1e-3)] if batch_norm else []  # Keras's eps
    return [conv(inputs, width, bias=not batch_norm), *normalise, nn.ReLU(inplace=True)]


def _max_blur_pool(x: Tensor) -> Tensor:
    """Halve the sides: 2x2 maximum, 3x3 binomial blur, every second pixel (Zhang 2019, antialiased CNNs).

    Borders are repeated. The blur is written as a mean over 2x2 pixels twice; all of it is centred on the 2x2 pixels
    that a plain pool covers.
    """
    dense = F.max_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 2, stride=1)
    return F.avg_pool2d(F.avg_pool2d(dense, 2, stride=1), 2)

"""RED-Net of 30 layers (Mao et al. 2016), the network of Noise2Noise's first table (Lehtinen et al. 2018)."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets.layers import Size, conv, deconv

DEPTH = 15  # convolutions, and as many transposed ones


class REDNet30(nn.Module):
    """15 convolutions, then 15 transposed ones, all 3x3 of stride 1, without normalisation.

    The output of every second convolution is added, after the ReLU, to that of the transposed one that mirrors it, and
    the image to the last. Ports rectify the sums once more, which changes no value and no gradient, as both summands
    are rectified. 4,139,395 parameters for 3 channels and the 128 feature maps of Lehtinen et al.

    Args:
        channels: of the images.
        outputs: channels to return. As many as the images have: input plus residual; else plain numbers.
        features: feature maps between the layers.
    """

    pixels_per_pass: ClassVar[int] = 600 * 600  # of an image: 2.6 kB of memory a pixel in bf16

    def __init__(self, channels: int, outputs: int, features: Size = 128) -> None:
        super().__init__()
        self.predicts_image = outputs == channels
        self.down = nn.ModuleList(conv(features if depth else channels, features) for depth in range(DEPTH))
        self.up = nn.ModuleList(deconv(features, features) for _ in range(DEPTH - 1))
        self.last = deconv(features, outputs, gain=1.0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        x = noisy
        skips = []
        for depth, layer in enumerate(self.down, start=1):
            x = F.relu(layer(x))
            if depth % 2 == 0:
                skips.append(x)
        for depth, layer in enumerate(self.up, start=1):
            x = F.relu(layer(x))
            if depth % 2 == 1:
                x = x + skips.pop()
        output: Tensor = self.last(x)
        return noisy + output if self.predicts_image else output

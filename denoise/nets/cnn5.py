"""A plain network of five convolutions, the smallest for trying a method."""

from torch import Tensor, nn

from denoise.nets.layers import Size, conv

DEPTH = 5


class CNN5(nn.Module):
    """Five 3x3 convolutions with ReLU between, 64 feature maps: 114,307 parameters for 3 channels in and out.

    The reproduction of R2R by Kumar et al. names a CNN of five layers and no details, so everything but the number of
    layers is this project's choice.
    """

    def __init__(self, channels: int, outputs: int, features: Size = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth in range(DEPTH - 1):
            layers += [conv(features if depth else channels, features), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.last = conv(features, outputs, gain=1.0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        output: Tensor = self.last(self.hidden(noisy))
        return output

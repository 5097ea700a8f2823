"""The plain network of five convolutions of Kumar et al. (figure 1), the smallest for trying a method."""

from itertools import pairwise

from torch import Tensor, nn

from denoise.nets.layers import Size, conv

WIDTHS = (32, 64, 128, 32)  # feature maps between the convolutions


class CNN5(nn.Module):
    """Five 3x3 convolutions with ReLU between: 129,857 parameters for grey images, 131,011 for 3 channels.

    The reproduction of R2R by Kumar et al. gives the widths and the number of parameters; weights are initialised by
    ``layers.conv``.

    Args:
        channels: of the images.
        outputs: channels to return.
        features: feature maps between all convolutions; None: those of the report, 32, 64, 128 and 32. Version 0.1.0
            had 64 everywhere.
    """

    def __init__(self, channels: int, outputs: int, features: Size | None = None) -> None:
        super().__init__()
        widths = WIDTHS if features is None else (features,) * len(WIDTHS)
        layers: list[nn.Module] = []
        for inputs, width in pairwise((channels, *widths)):
            layers += [conv(inputs, width), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.last = conv(widths[-1], outputs, gain=1.0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        output: Tensor = self.last(self.hidden(noisy))
        return output

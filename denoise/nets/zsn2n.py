"""The small network of Zero-Shot Noise2Noise (Mansour and Heckel, CVPR 2023)."""

from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2  # of every LeakyReLU


class ZSN2N(nn.Module):
    """Two 3 x 3 convolutions and one of 1 x 1, about 22,000 weights for 3 channels. Any size; it predicts the noise.

    Weights are initialised as PyTorch's own layers are, as in the authors' notebook.
    """

    def __init__(self, channels: int, outputs: int, maps: int = 48) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, maps, 3, padding=1)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1)
        self.conv3 = nn.Conv2d(maps, outputs, 1)

    @property
    def last(self) -> nn.Conv2d:
        """The last layer."""
        return self.conv3

    def forward(self, noisy: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, outputs, H, W)."""
        x = F.leaky_relu(self.conv1(noisy), SLOPE)
        noise: Tensor = self.conv3(F.leaky_relu(self.conv2(x), SLOPE))
        return noise

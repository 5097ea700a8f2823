"""Convolutions with their initial weights."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

Size = Annotated[int, Field(ge=1, le=1024)]  # a number of layers or of feature maps


def conv(inputs: int, outputs: int, kernel: int = 3, gain: float = 2**0.5, bias: bool = True) -> nn.Conv2d:
    """Return a convolution that keeps the size: He normal with fan-in, zero bias.

    The gain is sqrt 2 whatever the slope of the activation, 1 for a linear last layer (the code of Laine et al. 2019).
    """
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    init_normal(layer.weight, std=gain / (inputs * kernel * kernel) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def deconv(inputs: int, outputs: int, kernel: int = 3, gain: float = 2**0.5) -> nn.ConvTranspose2d:
    """Return a transposed convolution of stride 1 that keeps the size, initialised as ``conv``."""
    layer = nn.ConvTranspose2d(inputs, outputs, kernel, padding=kernel // 2)
    init_normal(layer.weight, std=gain / (inputs * kernel * kernel) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def init_normal(weight: Tensor, std: float) -> None:
    """Fill a weight with normal values; on the meta device, which has none, torch would load its compiler."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)

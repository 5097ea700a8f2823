"""BM3D: the classical baseline without training (Dabov et al. 2007; Mäkinen, Azzari and Foi 2020)."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from denoise.errors import UserError
from denoise.methods.base import Batch, MakeNet, Method, View, Views
from denoise.rng import Rng


@dataclass(frozen=True)
class BM3D(Method):
    """Filter groups of similar blocks together, for white Gaussian noise of known sigma. Nothing is trained.

        x1 = aggregate T^-1(hard(T y, lambda sigma))                         (Dabov et al. 2007, section III)
        x2 = aggregate T^-1(|T x1|^2 / (|T x1|^2 + sigma^2) T y)             the restored image

    with the noisy image y, T the 3-D transform of a group of similar blocks, hard the threshold that sets coefficients
    below lambda sigma to 0, and aggregate the weighted mean of the blocks that cover a pixel.

    It calls the package ``bm3d``, closed binaries that are free for non-commercial use only and therefore an extra
    (noise2x[bm3d]). Colour images are matched by their luminance in the opponent space (CBM3D); without
    it the package loses 1.2 to 2.4 dB (Kodak 1, 3 and 23 at sigma 25), with its quick profile "lc" 0.2 to 0.3 dB in 0.4
    of the time. It uses no net and runs on the CPU.
    """

    needs: ClassVar[tuple[View, ...]] = ()
    families: ClassVar[tuple[str, ...] | None] = ("gauss", "none")
    trained: ClassVar[bool] = False

    def needs_level(self) -> bool:
        """Return True: the filter is given sigma."""
        return True

    def make_net(self, make: MakeNet) -> nn.Module:
        """Return a module without weights, which is never called."""
        return nn.Identity()

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Raise UserError: there is nothing to train."""
        _refuse()

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Raise UserError: there is nothing to train."""
        _refuse()

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the filtered batch, not clipped; ``level`` (B, 1, 1, 1) is the sigma of each image in [0, 1].

        Raises:
            UserError: the package is not installed, or no level is given.
        """
        if level is None:
            raise UserError("method=bm3d needs the level of the noise and got none; give sigma.")
        package = _package()
        restored = [
            _filter(package, image, sigma) for image, sigma in zip(noisy, level.flatten().tolist(), strict=True)
        ]
        return torch.stack(restored).to(noisy)


def _filter(package: Any, noisy: Tensor, sigma: float) -> Tensor:
    """Return the filtered image (C, H, W)."""
    pixels = noisy.permute(1, 2, 0).double().cpu().numpy()
    if pixels.shape[2] == 1:
        return torch.from_numpy(package.bm3d(pixels[..., 0], sigma)).reshape(noisy.shape)
    return torch.from_numpy(package.bm3d_rgb(pixels, sigma)).permute(2, 0, 1)


def _package() -> Any:
    try:
        return import_module("bm3d")
    except ImportError:
        raise UserError(
            "method=bm3d needs the package bm3d, which is not installed; "
            "if your use is non-commercial, as its licence asks, run: pip install 'noise2x[bm3d]'."
        ) from None


def _refuse() -> NoReturn:
    raise UserError("method=bm3d is not trained; evaluate it or restore with it.")

"""Images of any size, restored tile by tile with real nets."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from denoise.denoiser import untrained_denoiser
from denoise.errors import UserError
from denoise.images.io import DecodedImage, read_image
from denoise.images.tensors import pad, to_tensor
from denoise.images.tiles import Tiles
from denoise.methods import build_method
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from denoise.rng import Rng, batch_rng
from denoise.stacks.value_range import ValueRange
from denoise.tiling import choose_tiles, restore_batch, restore_image, restore_tensor


@dataclass
class NetDenoiser:
    """A denoiser of a net, as restore sees one; it remembers what it was called with."""

    net: nn.Module | Callable[[Tensor], Tensor]
    channels: int = 3
    multiple: int = 32
    noise: str = "gauss25"
    name: str = "n2n"
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    sigmas: list[Tensor | None] = field(default_factory=list)
    needs_level: bool = False
    pixels_per_pass: int = 1 << 20
    tiles: Tiles | None = None
    value_range: ValueRange | None = None

    def level_of(self, noisy: Tensor) -> float:
        return float(noisy.mean())

    def __call__(self, noisy: Tensor, sigma: Tensor | None = None, rng: Rng | None = None) -> Tensor:
        assert noisy.shape[1] == self.channels
        assert noisy.shape[2] % self.multiple == noisy.shape[3] % self.multiple == 0
        assert rng is None or len(set(rng.keys)) == len(noisy)
        self.shapes.append(tuple(noisy.shape))
        self.sigmas.append(sigma)
        return self.net(noisy)


def convolutions(channels: int) -> nn.Module:
    """A net that sees 4 pixels far."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(channels, 8, 5, padding=2), nn.LeakyReLU(0.1), nn.Conv2d(8, channels, 5, padding=2)]
    return nn.Sequential(*layers).eval()


class SmallUNet(nn.Module):
    """Two poolings and a skip; multiple 4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.down1, self.down2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.bottom, self.up = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(24, 12, 3, padding=1)
        self.last = nn.Conv2d(15, 3, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        half = F.max_pool2d(F.leaky_relu(self.down1(noisy), 0.1), 2)
        quarter = F.max_pool2d(F.leaky_relu(self.down2(half), 0.1), 2)
        x = F.interpolate(F.leaky_relu(self.bottom(quarter), 0.1), scale_factor=2)
        x = F.interpolate(F.leaky_relu(self.up(torch.cat([x, half], 1)), 0.1), scale_factor=2)
        return noisy + 0.3 * self.last(torch.cat([x, noisy], 1))


@pytest.fixture(scope="module")
def noisy(photographs: Path) -> Tensor:
    """A photograph of 211x333 with noise of sigma 25/255, not clipped."""
    clean = to_tensor(read_image(photographs / "coffee.png").pixels[50:261, 100:433])
    return clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def test_tiles_give_the_whole_image_where_the_net_sees_less_than_the_overlap(noisy: Tensor) -> None:
    denoiser = NetDenoiser(convolutions(3))
    whole = restore_tensor(denoiser, noisy, tile=512)
    assert denoiser.shapes == [(1, 3, 224, 352)]
    for tile, overlap in ((64, 16), (64, 32), (96, 24), (128, 64), (224, 17)):
        denoiser.shapes.clear()
        tiled = restore_tensor(denoiser, noisy, tile=tile, overlap=overlap)
        assert len(set(denoiser.shapes)) == 1
        assert max(denoiser.shapes[0]) == tile or (tile, overlap) == (224, 17)
        assert len(denoiser.shapes) == choose_tiles(denoiser, tile, overlap).count(211, 333)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_tiles_lie_on_the_grid_of_the_pooling(noisy: Tensor) -> None:
    """With pooling too, tiles agree with the whole image, to the last bits, because they start at multiples."""
    denoiser = NetDenoiser(SmallUNet().eval(), multiple=4)
    whole = restore_tensor(denoiser, noisy, tile=512)
    for tile in (96, 100, 124):
        tiled = restore_tensor(denoiser, noisy, tile=tile, overlap=64)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_no_seams_where_the_net_sees_further_than_the_overlap(photographs: Path) -> None:
    """A net that sees 48 pixels far feels the border of its tile, zeros: tiles differ, but nowhere abruptly."""
    image = to_tensor(read_image(photographs / "coffee.png").pixels[50:210, 100:420])
    denoiser = NetDenoiser(lambda batch: F.avg_pool2d(batch, 97, stride=1, padding=48))
    whole = restore_tensor(denoiser, image, tile=512)

    def largest_step(overlap: int) -> float:
        """By how much the difference to the whole image jumps from one column to the next, at most."""
        restored = restore_tensor(denoiser, image, tile=160, overlap=overlap)
        return float((restored - whole).diff(dim=2).abs().max())

    seam = largest_step(0)
    assert seam > 10 / 255  # what a seam looks like
    assert largest_step(64) < 0.3 * seam


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (33, 47), (32, 64), (65, 31), (2, 129)])
def test_any_size_gives_the_same_in_tiles_and_in_one_pass(noisy: Tensor, size: tuple[int, int]) -> None:
    """In tiles and in one pass the same: what a pass over the padded image gives, cut back."""
    image = noisy[:, :1].repeat(1, 300, 1) if size[1] == 1 else noisy
    image = image[:, : size[0], : size[1]]
    denoiser = NetDenoiser(convolutions(3))
    tiled = restore_tensor(denoiser, image, tile=64, overlap=32)
    whole = denoiser.net(pad(image[None], 32))[0, :, : size[0], : size[1]]
    assert tiled.shape == image.shape
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 150), width=st.integers(1, 150), tile=st.integers(8, 80), share=st.floats(0, 1))
def test_the_identity_comes_back_whatever_the_tiles(height: int, width: int, tile: int, share: float) -> None:
    overlap = int(share * (tile - 8))
    image = torch.rand(1, height, width, generator=torch.Generator().manual_seed(height))
    denoiser = NetDenoiser(lambda batch: batch, channels=1, multiple=8)
    done: list[float] = []
    restored = restore_tensor(denoiser, image, tile=tile, overlap=overlap, advance=done.append)
    torch.testing.assert_close(restored, image, rtol=0, atol=1e-6)
    count = choose_tiles(denoiser, tile, overlap).count(height, width)
    assert sum(done) == len(done) == len(denoiser.shapes) == count


@pytest.mark.parametrize(
    ("size", "pixels", "tiles"),
    [
        ((1024, 1024), 1280 * 1024, 1),
        ((1024, 1024), 600 * 600, 4),
        ((3000, 4000), 1280 * 1024, 12),
        ((1, 9000), 512, 30),
    ],
)
def test_tiles_fit_the_image_and_the_bound(size: tuple[int, int], pixels: int, tiles: int) -> None:
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    multiple = 32 if pixels > 512 else 1
    denoiser = NetDenoiser(lambda batch: batch, channels=1, multiple=multiple, pixels_per_pass=pixels)
    overlap = 64 if pixels > 512 else 8
    restored = restore_tensor(denoiser, image, overlap=overlap)
    torch.testing.assert_close(restored, image, rtol=0, atol=1e-6)
    assert len(denoiser.shapes) == choose_tiles(denoiser, None, overlap).count(*size)
    assert len(denoiser.shapes) <= tiles
    areas = [shape[2] * shape[3] for shape in denoiser.shapes]
    assert max(areas) <= pixels
    assert sum(areas) <= 1.3 * image.numel()


def test_a_pass_is_smaller_for_nets_that_need_more_memory() -> None:
    small = untrained_denoiser("zs_n2n", {}, 3, parse_noise("gauss25"))
    method = build_method("n2c", {}, parse_noise("gauss25"))
    unet, wide = (
        replace(small, method=method, net=NetMaker(name, 3, {})(**form)).pixels_per_pass
        for name, form in (("unet_n2n", {}), ("unet_ssdn", {"blind_spot": True}))
    )
    assert small.pixels_per_pass == 512**2 < wide < 1024**2 <= unet


# The tiles of the denoiser itself


def test_tiles_of_the_denoiser_are_restored_together_and_give_the_whole_image(noisy: Tensor) -> None:
    whole = restore_batch(NetDenoiser(convolutions(3)), noisy[None])
    denoiser = NetDenoiser(convolutions(3), tiles=Tiles(32, 4 * 96**2, 96, 32, exact=True))
    restored = restore_batch(denoiser, torch.stack([noisy, noisy]))
    torch.testing.assert_close(restored, torch.cat([whole, whole]), rtol=0, atol=1e-5)
    assert set(denoiser.shapes) == {(4, 3, 96, 96), (1, 3, 96, 96)}  # five tiles in a band, four of them at once
    torch.testing.assert_close(restore_tensor(denoiser, noisy), whole[0], rtol=0, atol=1e-5)
    assert sum(shape[0] for shape in denoiser.shapes) == 3 * denoiser.tiles.count(211, 333)


def test_every_tile_has_randomness_of_its_own_and_a_whole_image_that_of_one_pass() -> None:
    class Random(NetDenoiser):
        def __call__(self, noisy: Tensor, sigma: Tensor | None = None, rng: Rng | None = None) -> Tensor:
            return rng.normal(*noisy.shape[1:])

    noisy, rng = torch.zeros(2, 1, 64, 96), batch_rng(0, 0, torch.arange(2))
    tiled = Random(convolutions(1), 1, tiles=Tiles(32, 1 << 20, 32, 0, exact=True))
    tiles = restore_batch(tiled, noisy, None, rng).unfold(2, 32, 32).unfold(3, 32, 32).reshape(12, -1)
    assert (torch.corrcoef(tiles) - torch.eye(12)).abs().max() < 0.2
    whole = Random(convolutions(1), 1, tiles=Tiles(32, 1 << 20, 96, 0, exact=True))
    assert torch.equal(restore_batch(whole, noisy, None, rng), rng.normal(1, 64, 96))


def test_every_image_of_a_batch_has_its_level_in_all_its_tiles() -> None:
    denoiser = NetDenoiser(lambda batch: batch, needs_level=True, tiles=Tiles(32, 1, 64, 32, exact=True))
    levels = torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    images = torch.stack([torch.full((3, 96, 64), 0.25), torch.full((3, 96, 64), 0.75)])
    restore_batch(denoiser, images, levels)
    restore_batch(denoiser, images)  # a level that is not given is estimated once an image
    assert torch.cat(denoiser.sigmas).flatten().tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.25, 0.25, 0.75, 0.75])


# Grey and colour, sigma


def test_a_grey_image_with_a_colour_denoiser(noisy: Tensor) -> None:
    grey = noisy[:1]
    net = convolutions(3)
    restored = restore_tensor(NetDenoiser(net), grey)
    expected = net(pad(grey.repeat(3, 1, 1)[None], 32))[0].mean(dim=0, keepdim=True)[:, :211, :333]
    torch.testing.assert_close(restored, expected)


def test_a_colour_image_with_a_grey_denoiser(noisy: Tensor) -> None:
    net = convolutions(1)
    restored = restore_tensor(NetDenoiser(net, channels=1), noisy)
    for channel in range(3):
        alone = restore_tensor(NetDenoiser(net, channels=1), noisy[channel : channel + 1])
        torch.testing.assert_close(restored[channel], alone[0])


def test_sigma_reaches_the_denoiser_as_a_tensor(noisy: Tensor) -> None:
    denoiser = NetDenoiser(convolutions(3))
    restore_tensor(denoiser, noisy[:, :32, :32], 25 / 255)
    restore_tensor(denoiser, noisy[:, :32, :32])
    first, second = denoiser.sigmas
    assert second is None
    assert first is not None
    torch.testing.assert_close(first, torch.full((1, 1, 1, 1), 25 / 255))
    with pytest.raises(UserError, match=r"sigma is 25.*0\.098"):
        restore_tensor(denoiser, noisy, 25)


def test_the_result_is_an_ordinary_tensor(noisy: Tensor) -> None:
    restored = restore_tensor(NetDenoiser(convolutions(3)), noisy, tile=96, overlap=32)
    assert restored.clamp_(0, 1).requires_grad_().requires_grad  # a tensor of inference mode refuses both


# Images


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_keeps_type_alpha_and_metadata(photographs: Path, dtype: type, channels: int) -> None:
    source = read_image(photographs / "astronaut.png")
    pixels = source.pixels[:150, :201, :channels].astype(dtype) * (np.iinfo(dtype).max // 255)
    alpha = pixels[..., 0].copy()
    image = DecodedImage(pixels, alpha, source.icc, b"Exif\0\0")
    restored = restore_image(NetDenoiser(lambda batch: 1 - batch), image, tile=64, overlap=16)
    np.testing.assert_array_equal(restored.pixels, np.iinfo(dtype).max - pixels)
    assert restored.pixels.dtype == dtype
    assert restored.alpha is alpha
    assert (restored.icc, restored.exif) == (source.icc, b"Exif\0\0")


def test_an_image_is_clipped_and_rounded_like_its_tensor(photographs: Path) -> None:
    image = read_image(photographs / "astronaut.png")
    denoiser = NetDenoiser(lambda batch: 3 * batch - 1)
    restored = restore_image(denoiser, image, tile=192, overlap=32).pixels
    expected = restore_tensor(denoiser, to_tensor(image.pixels), tile=192, overlap=32)
    assert restored.min() == 0
    assert restored.max() == 255
    np.testing.assert_array_equal(restored, (expected.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy())


def test_a_large_image_is_never_held_as_float(photographs: Path) -> None:
    """The largest tensor made while a 12 megapixel image is restored is a band of tiles."""
    tile = read_image(photographs / "astronaut.png").pixels
    pixels = np.tile(tile, (6, 8, 1))  # 3072x4096
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            largest = max(largest, *(part.numel() for part in [result, *args] if isinstance(part, Tensor)), 0)
            return result

    denoiser = NetDenoiser(lambda batch: batch * 1.0)
    with Sizes():
        restored = restore_image(denoiser, DecodedImage(pixels), tile=512, overlap=64)
    np.testing.assert_array_equal(restored.pixels, pixels)
    assert set(denoiser.shapes) == {(1, 3, 512, 512)}
    assert 3 * 512 * 512 <= largest <= 3 * 512 * 4096

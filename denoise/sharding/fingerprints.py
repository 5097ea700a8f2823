"""What makes a photograph known again: its grey levels exactly, or its look, whatever its size and format.

They stop a test image from being trained on, also as PNG of a JPEG, in grey where the other is in colour (BSD68 holds
images of the BSDS300 test set so), resized, or compressed once more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from denoise.images.io import pixel_hash
from denoise.images.tensors import Pixels

# MATLAB's rgb2gray, which made BSD68 and Train400: the first row of the inverse of the NTSC matrix.
LUMA = (0.298936021293775, 0.587043074451121, 0.114020904255103)
ALIKE = 6  # of the 64 bits of two looks that may differ in images of one photograph


def grey_hash(pixels: Pixels) -> str:
    """Return the sha256 of an image's grey levels, the same for a colour image and MATLAB's grey version of it."""
    if pixels.shape[2] == 1:
        return pixel_hash(pixels)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    grey = np.multiply(red, LUMA[0], dtype=np.float64)  # in place from here: fresh memory costs more than the sums
    part = np.multiply(green, LUMA[1], dtype=np.float64)
    grey += part
    grey += np.multiply(blue, LUMA[2], out=part)
    grey += 0.5
    return pixel_hash(grey.astype(pixels.dtype)[..., None])


def perceptual_hash(pixels: Pixels) -> str:
    """Return 64 bits, in hex, that change little when an image is resized or compressed.

    The signs of the low frequencies of its cosine transform (pHash: Zauner, "Implementation and benchmarking of
    perceptual image hash functions", 2010), as the package ImageHash computes them.
    """
    from imagehash import phash
    from PIL import Image

    eight = (pixels // 257).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return str(phash(Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight)))


@dataclass(frozen=True)
class FingerprintIndex:
    """The images of a test set, to be looked for among others."""

    grey: Mapping[str, str]  # grey hash -> name
    looks: npt.NDArray[np.uint64]
    names: Sequence[str]  # of the looks

    @classmethod
    def of(cls, prints: Iterable[tuple[str, str, str]]) -> "FingerprintIndex":
        """Return those of (name, grey hash, look) of each image."""
        rows = list(prints)
        looks = np.array([int(look_, 16) for _, _, look_ in rows], np.uint64)
        return cls({grey: name for name, grey, _ in rows}, looks, [name for name, _, _ in rows])

    def same(self, grey: str) -> str | None:
        """Return the name of the image with the same grey levels."""
        return self.grey.get(grey)

    def alike(self, looks: Sequence[str]) -> list[tuple[int, str]]:
        """Return (place in ``looks``, name) of the images that look the same."""
        others = np.array([int(look_, 16) for look_ in looks], np.uint64)
        apart = np.bitwise_count(others[:, None] ^ self.looks)
        return [(int(place), self.names[int(name)]) for place, name in np.argwhere(apart <= ALIKE)]

"""Fingerprints that recognise a photograph: a hash of its grey levels, and a perceptual hash.

They keep test images out of the training data, also when one is a PNG of the other's JPEG, or grey where the other is
in colour (BSD68 holds such versions of BSDS300 test images), and they detect resized and recompressed versions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from denoise.images.io import pixel_hash
from denoise.images.tensors import Pixels

# MATLAB's rgb2gray, which made BSD68 and Train400: the first row of the inverse of the NTSC matrix.
LUMA = (0.298936021293775, 0.587043074451121, 0.114020904255103)
MAX_DISTANCE = 6  # of the 64 bits, how many may differ between perceptual hashes of one photograph


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
    """The fingerprints of a test set, to search for its images in other sets."""

    name_of_grey: Mapping[str, str]  # grey hash -> name
    perceptual: npt.NDArray[np.uint64]  # perceptual hashes
    names: Sequence[str]  # of the images of these

    @classmethod
    def build(cls, fingerprints: Iterable[tuple[str, str, str]]) -> "FingerprintIndex":
        """Return the index of images from the (name, grey hash, perceptual hash) of each."""
        rows = list(fingerprints)
        perceptual = _as_integers([perceptual for _, _, perceptual in rows])
        return cls({grey: name for name, grey, _ in rows}, perceptual, [name for name, _, _ in rows])

    def find_identical(self, grey: str) -> str | None:
        """Return the name of the image with that grey hash."""
        return self.name_of_grey.get(grey)

    def find_similar(self, perceptual: Sequence[str]) -> list[tuple[int, str]]:
        """Return (position in ``perceptual``, name) of each image whose perceptual hash is close to one of these."""
        distances = np.bitwise_count(_as_integers(perceptual)[:, None] ^ self.perceptual)
        return [(int(row), self.names[int(column)]) for row, column in np.argwhere(distances <= MAX_DISTANCE)]


def _as_integers(hashes: Sequence[str]) -> npt.NDArray[np.uint64]:
    return np.array([int(digits, 16) for digits in hashes], np.uint64)

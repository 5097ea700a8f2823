"""Images that the tests of reading and writing share."""

from pathlib import Path

import numpy as np
import pytest

from denoise.images.io import DecodedImage, read_image


@pytest.fixture(scope="session")
def photo(photographs: Path) -> DecodedImage:
    """A colour photograph with a colour profile, cut to an odd size."""
    image = read_image(photographs / "chelsea.png")
    return DecodedImage(image.pixels[:151, :203], icc=image.icc)


@pytest.fixture(scope="session")
def deep(photo: DecodedImage) -> np.ndarray:
    """The photograph at 16 bits, every low byte in use."""
    rng = np.random.default_rng(0)
    return photo.pixels.astype(np.uint16) * 256 + rng.integers(0, 256, photo.pixels.shape, dtype=np.uint16)

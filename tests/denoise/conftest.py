"""Images that the tests of reading and writing share, and the GPU of those marked so."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from denoise import distributed
from denoise.images.io import DecodedImage, read_image


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The GPU, on which training in this process computes as well; without one the test skips.

    DENOISE_TEST_DEVICE=cpu puts the CPU in its place, which tries the tests themselves.
    """
    device = torch.device(os.environ.get("DENOISE_TEST_DEVICE", "cuda:0"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here; DENOISE_TEST_DEVICE=cpu tries this test on the CPU")
    # PyTorch looks at it once in a process, at the first matrix product; deterministic training needs it then.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(distributed, "_device", [device])
    return device


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

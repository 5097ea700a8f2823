"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of real data sets, laid out as ``denoise fetch --mirror`` takes it."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DENOISE_TEST_MIRROR", beside))
    if not (folder / "SHA256SUMS").is_file():
        pytest.skip("needs the real data sets: set DENOISE_TEST_MIRROR to a mirror folder (docs/data.md)")
    return folder.resolve()


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs that scikit-image installs with itself."""
    import skimage

    return Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A folder of small real images of several formats and sizes, colour and grey."""
    from denoise.images.io import DecodedImage, read_image, write_image

    folder = tmp_path_factory.mktemp("images")
    for number, (name, suffix) in enumerate(
        [("coffee.png", "png"), ("rocket.jpg", "jpg"), ("coins.png", "png"), ("ihc.png", "webp"), ("brick.png", "tif")]
    ):
        pixels = read_image(photographs / name).pixels
        write_image(folder / f"{number}-{Path(name).stem}.{suffix}", DecodedImage(pixels[100 : 196 + number, 80:208]))
    return folder


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory, small_images: Path) -> Path:
    """Shards of the small images, several of them."""
    from denoise.sharding.writer import write_shards
    from pipelines.datasets.shard import find_sources

    folder = tmp_path_factory.mktemp("shards") / "small"
    write_shards(folder, find_sources(small_images), max_bytes=40_000)
    return folder

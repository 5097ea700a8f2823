"""What all tests share."""

import os
import signal
from pathlib import Path
from types import FrameType

import psutil
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGTERM end the tests as Ctrl-C does: what the fixtures have started is stopped."""
    tests, distributed = os.getpid(), bool(config.getoption("numprocesses", None))

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != tests:  # a fork of a test
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for worker in psutil.Process().children() if distributed else ():
            worker.send_signal(number)
        pytest.exit("ended by SIGTERM", 128 + number)

    signal.signal(signal.SIGTERM, leave)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Take the groups of tests/groups.py for ``--dist loadgroup``."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from tests.groups import GroupScheduling

    return GroupScheduling(config, log)


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

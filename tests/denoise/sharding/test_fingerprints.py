import numpy as np
import pytest
from PIL import Image

from denoise.images.io import DecodedImage, read_image, write_image
from denoise.sharding.fingerprints import MAX_DISTANCE, FingerprintIndex, grey_hash, perceptual_hash


@pytest.fixture(scope="module")
def pixels(photographs):
    return read_image(photographs / "coffee.png").pixels


def distance(hash, other):
    return (int(hash, 16) ^ int(other, 16)).bit_count()


def test_the_grey_levels_are_matlabs():
    """Values written down from round(0.298936 R + 0.587043 G + 0.114021 B)."""
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 200, 31]]], np.uint8)
    assert grey_hash(colours) == grey_hash(np.array([[[76], [150], [29], [124]]], np.uint8))


def test_grey_and_colour_of_one_photograph_are_the_same(mirror):
    """BSD68 holds CBSD68's images as MATLAB turned them grey, in another order."""
    grey = {grey_hash(read_image(path).pixels) for path in (mirror / "bsd68").glob("*.png")}
    colour = {grey_hash(read_image(path).pixels) for path in (mirror / "cbsd68").glob("*.png")}
    assert len(grey) == 68
    assert grey == colour


@pytest.mark.parametrize("size", [(300, 200), (128, 96), (900, 600)])
def test_a_resized_photograph_looks_the_same(pixels, size):
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    assert grey_hash(small) != grey_hash(pixels)
    assert distance(perceptual_hash(small), perceptual_hash(pixels)) <= MAX_DISTANCE


@pytest.mark.parametrize("quality", [90, 30])
def test_a_compressed_photograph_looks_the_same(pixels, tmp_path, quality):
    Image.fromarray(pixels).save(tmp_path / "again.jpg", quality=quality)
    again = read_image(tmp_path / "again.jpg").pixels
    assert grey_hash(again) != grey_hash(pixels)
    assert distance(perceptual_hash(again), perceptual_hash(pixels)) <= MAX_DISTANCE


def test_16_bits_and_grey_have_a_perceptual_hash(pixels, tmp_path):
    deep = pixels.astype(np.uint16) * 257
    write_image(tmp_path / "deep.png", DecodedImage(deep))
    assert perceptual_hash(read_image(tmp_path / "deep.png").pixels) == perceptual_hash(pixels)
    assert (
        distance(perceptual_hash(pixels.mean(axis=2, keepdims=True).astype(np.uint8)), perceptual_hash(pixels))
        <= MAX_DISTANCE
    )


def test_different_photographs_look_different(mirror):
    hashes = [perceptual_hash(read_image(path).pixels) for path in sorted((mirror / "kodak").glob("*.png"))]
    assert len(hashes) == 24
    assert min(distance(a, b) for number, a in enumerate(hashes) for b in hashes[:number]) > MAX_DISTANCE


def test_images_of_the_index_are_found(pixels):
    other = pixels[::-1]
    index = FingerprintIndex.build(
        [("a.png", grey_hash(pixels), perceptual_hash(pixels)), ("b.png", grey_hash(other), perceptual_hash(other))]
    )
    assert index.find_identical(grey_hash(other)) == "b.png"
    assert index.find_identical("nothing") is None
    assert index.find_similar([perceptual_hash(other), "f" * 16, perceptual_hash(pixels)]) == [
        (0, "b.png"),
        (2, "a.png"),
    ]

"""The warning about correlated noise, before a training on real images."""

import subprocess

import numpy as np
import pytest
from PIL import Image

WARNING = "warning: the noise of neighbouring pixels is correlated"


def write(folder, correlated, end=""):
    """Four grey images of one edge, with noise of sigma 20."""
    folder.mkdir(exist_ok=True)
    y, x = np.mgrid[:200, :240] / 240
    for number in range(4):
        noise = np.random.default_rng([number, len(end)]).normal(size=y.shape)
        if correlated:
            noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))) / 2
        pixels = 255 * (0.3 + 0.2 * x + 0.2 * (x + y > 1)) + 20 * noise
        Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8)).save(folder / f"im{number}{end}.png")


@pytest.fixture
def train(project, denoise_fork, call):
    """A function that trains a method on the images of ``mine`` for two steps, and returns what it says."""

    def run(method, *keys, noise="none"):
        call("denoise", "shard", "mine", "--from", "mine", cwd=project)
        words = ["data.train=mine", f"noise={noise}", f"method={method}", "data.val=[]", "data.test=[]"]
        size = ["train.steps=2", "train.crop=32", "train.batch_size=2", "data.colour=grey"]
        done = subprocess.run(
            [*denoise_fork, "train", "--local", *words, *size, *keys], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def test_methods_that_keep_correlated_noise(project, train):
    write(project / "mine", correlated=True)
    said = train("n2v")
    assert f"{WARNING} (0.4" in said  # 0.5, less what the flattest blocks lack
    assert "measured in 4 images), and n2v keeps such noise as if it were detail" in said
    assert WARNING not in train("n2v", "method.structure=square", "method.structure_size=3")
    assert WARNING not in train("n2v", noise="gauss25")  # images are clean then


def test_pairs_may_have_any_noise(project, train):
    write(project / "mine", correlated=True, end="_noisy")
    write(project / "mine", correlated=True, end="_noisy2")
    assert WARNING not in train("n2n")
    assert WARNING in train("nb2nb")


def test_independent_noise(project, train):
    write(project / "mine", correlated=False)
    assert WARNING not in train("n2v")


def test_images_that_are_too_small_to_measure(project, train):
    (project / "mine").mkdir()
    Image.new("L", (40, 40), 128).save(project / "mine" / "one.png")
    assert WARNING not in train("n2v")


@pytest.fixture
def burst(project, photographs):
    """A function that writes four frames of one photograph, each a given number of pixels beside the one before."""
    from skimage.io import imread

    scene = imread(photographs / "coffee.png", as_gray=True)[:256, :300]

    def make(step=0, fade=1.0):
        folder = project / "mine" / "burst"
        folder.mkdir(parents=True)
        for number in range(4):
            noise = np.random.default_rng(number).normal(size=(256, 256)) * 15
            pixels = 255 * fade**number * scene[:, number * step : number * step + 256] + noise
            Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8)).save(folder / f"frame{number}.png")

    return make


@pytest.mark.parametrize(
    ("made", "warning"),
    [
        ({}, None),
        ({"step": 2}, "lies 2.0 pixels beside the first (the median of 4 pairs), and n2n learns to blur by as much"),
        ({"fade": 0.9}, "% brighter or darker than the first"),
    ],
)
def test_frames_of_a_burst_are_pairs_where_nothing_moved(burst, train, made, warning):
    burst(**made)
    said = train("n2n", "data.pairs=next")
    assert ("warning" in said) == (warning is not None)
    assert warning is None or warning in said

import numpy as np
import pytest
import torch
from scipy import ndimage

from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.noise_meter import measure_movement


@pytest.fixture(scope="module")
def scene(photographs):
    return to_tensor(read_image(photographs / "coffee.png").pixels)


def seen(scene, shift=(0, 0), sigma=25, seed=0):
    moved = ndimage.shift(scene.numpy(), (0, *shift), order=3, mode="nearest")
    noise = np.random.default_rng(seed).normal(size=moved.shape) * sigma / 255
    return torch.from_numpy(moved + noise).float()


@pytest.mark.parametrize("sigma", [5, 25, 50])
@pytest.mark.parametrize("shift", [(0, 0), (0.5, 0), (0, -1), (3, 2)])
def test_the_shift_is_found_in_noise(scene, shift, sigma):
    found = measure_movement(seen(scene, sigma=sigma), seen(scene, shift, sigma, seed=1))
    assert found.shift == pytest.approx(shift, abs=0.15)
    assert found.distance == pytest.approx(np.hypot(*shift), abs=0.15)
    assert found.likeness > 0.9
    assert abs(found.brightness) < 0.01


def test_something_that_moves_by_itself_is_not_the_scene(scene):
    after = seen(scene, seed=1)
    after[:, :128, :128] = seen(scene, (0, 5), seed=1)[:, :128, :128]
    assert measure_movement(seen(scene), after).distance < 0.15


def test_another_scene_is_not_alike(scene):
    assert measure_movement(seen(scene), seen(scene.flip(-1), seed=1)).likeness < 0.5


def test_fading_is_a_share_of_the_mean(scene):
    assert measure_movement(seen(scene), 0.9 * seen(scene, seed=1)).brightness == pytest.approx(-0.1, abs=0.005)


@pytest.mark.parametrize("size", [(1, 20, 30), (3, 129, 40)])
def test_small_and_flat_images(size):
    found = measure_movement(torch.full(size, 0.5), torch.full(size, 0.5))
    assert (found.distance, found.brightness) == (0, 0)

import torch

from denoise.noise import parse_noise
from denoise.rng import batch_rng


def test_a_real_image_is_left_alone_and_its_level_is_not_known():
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = parse_noise("none")
    observed = noise.corrupt(image, batch_rng(0, 0, torch.arange(2)))
    assert torch.equal(observed.noisy, image)
    assert torch.equal(observed.level, torch.zeros(2, 1, 1, 1))
    assert noise.level is None
    assert (noise.low, noise.high) == (0, 0)

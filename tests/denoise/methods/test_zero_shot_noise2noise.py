"""Zero-Shot Noise2Noise."""

import pytest
import torch

from denoise.images.io import read_image
from denoise.images.tensors import to_tensor
from denoise.methods import build_method, observe
from denoise.methods.zero_shot_noise2noise import pair_downsample
from denoise.nets.zsn2n import ZSN2N
from denoise.noise import parse_noise
from denoise.rng import batch_rng

NOISE = parse_noise("gauss25")


def zs_n2n(**fields):
    return build_method("zs_n2n", fields, NOISE)


def fresh_net(channels=3):
    torch.manual_seed(0)
    return ZSN2N(channels, channels).eval()


def test_the_pair_downsampler_written_out():
    image = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]).square().view(1, 1, 4, 4)
    first, second = pair_downsample(image)
    assert first[0, 0].tolist() == [[(1 + 16) / 2, (9 + 36) / 2], [(81 + 144) / 2, (121 + 196) / 2]]
    assert second[0, 0].tolist() == [[(0 + 25) / 2, (4 + 49) / 2], [(64 + 169) / 2, (100 + 225) / 2]]


def test_the_two_halves_share_no_pixel():
    image = torch.rand(1, 1, 6, 6, requires_grad=True)
    first, second = pair_downsample(image)
    one, other = (torch.autograd.grad(half.sum(), image, retain_graph=True)[0] for half in (first, second))
    assert torch.equal(one + other, torch.full_like(image, 0.5))
    assert not (one * other).any()


def test_the_loss_written_out():
    net, noisy = fresh_net(), torch.rand(2, 3, 8, 10)
    method = zs_n2n()
    batch = method.make_batch({"noisy": noisy}, batch_rng(0, 0, torch.arange(2)))
    with torch.no_grad():
        y1, y2 = pair_downsample(noisy)
        x1, x2 = y1 - net(y1), y2 - net(y2)
        d1, d2 = pair_downsample(noisy - net(noisy))
        residual = 0.5 * ((x1 - y2).square().mean() + (x2 - y1).square().mean())
        consistency = 0.5 * ((x1 - d1).square().mean() + (x2 - d2).square().mean())
    terms = method.loss(net, batch, 0)
    assert terms["loss"].item() == pytest.approx((residual + consistency).item(), rel=1e-5)
    assert terms["residual"].item() == pytest.approx(residual.item(), rel=1e-5)


def test_the_net_is_small():
    assert sum(p.numel() for p in ZSN2N(3, 3).parameters()) == 22_275


@pytest.fixture(scope="module")
def crop(photographs):
    clean = to_tensor(read_image(photographs / "coffee.png").pixels)[None, :, 100:164, 100:164]
    rng = batch_rng(0, 0, torch.arange(1))
    return clean, observe(clean, NOISE, ("noisy",), rng)["noisy"]


def test_training_on_the_image_alone_beats_the_noisy_image(crop):
    clean, noisy = crop
    net = fresh_net()
    before = [p.clone() for p in net.parameters()]
    with torch.inference_mode():
        restored = zs_n2n(steps=200).predict(net, noisy, None, None)
    error, noise = ((image - clean).square().mean() for image in (restored, noisy))
    assert error < 0.5 * noise
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))
    assert not net.training


def test_an_image_is_restored_the_same_alone_and_in_a_batch(crop):
    _, noisy = crop
    both = torch.cat([noisy, noisy.flip(3)])[..., :16, :16]
    with torch.inference_mode():
        together = zs_n2n(steps=3).predict(fresh_net(), both, None, None)
        alone = zs_n2n(steps=3).predict(fresh_net(), both[1:], None, None)
    assert torch.equal(together[1:], alone)


@pytest.mark.parametrize("shape", [(1, 1, 7, 9), (2, 3, 5, 32)])
def test_odd_sides_are_restored_to_the_last_row(shape):
    with torch.inference_mode():
        restored = zs_n2n(steps=2).predict(fresh_net(shape[1]), torch.rand(shape), None, None)
    assert restored.shape == shape
    assert restored.isfinite().all()


def test_more_steps_of_training_change_the_result(crop):
    _, noisy = crop
    few, more = (zs_n2n(steps=steps).predict(fresh_net(), noisy, None, None) for steps in (1, 2))
    assert not torch.equal(few, more)

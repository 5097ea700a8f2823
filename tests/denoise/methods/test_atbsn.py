"""AT-BSN: the loss, the two holes, and why a hole must cover the correlation of the noise."""

import numpy as np
import pytest
import torch

from denoise.errors import UserError
from denoise.images.io import read_image
from denoise.images.metrics import psnr
from denoise.images.tensors import to_tensor
from denoise.methods import build_method
from denoise.methods.atbsn import shift
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from denoise.rng import batch_rng

NOISE = parse_noise("corr25_0.8")
WINDOW = 13  # side of what the linear predictor sees


def atbsn(**fields):
    return build_method("atbsn", fields, NOISE)


class Records(torch.nn.Module):
    """Returns half of what it is fed, and records the shifts that it is asked for."""

    def __init__(self):
        super().__init__()
        self.shifts = []

    def forward(self, noisy, shift=1):
        self.shifts.append(shift)
        return 0.5 * noisy


def test_the_loss_is_the_mean_absolute_difference_of_all_pixels():
    noisy = torch.tensor([0.2, -0.4, 0.8, 1.0]).view(1, 1, 2, 2)
    net = Records()
    loss = atbsn().loss(net, {"input": noisy}, 0.5)["loss"]
    assert loss.item() == pytest.approx(0.5 * (0.2 + 0.4 + 0.8 + 1.0) / 4)
    assert net.shifts == [5]  # a hole of 9


def test_images_are_restored_with_the_smaller_hole():
    net = Records()
    for hole in (3, 0, 1, 11):
        atbsn(hole_at_test=hole).predict(net, torch.rand(1, 1, 4, 4), None, None)
    assert net.shifts == [2, 0, 1, 6]


@pytest.mark.parametrize("noise", ["gauss25", "corr25_0.8", "poisson30", "impulse0.5", "none"])
def test_it_trains_with_any_noise_and_assumes_independence_only_without_a_hole(noise):
    assert not build_method("atbsn", {}, parse_noise(noise)).assumes_independent_noise()
    assert build_method("atbsn", {"hole": 1}, parse_noise(noise)).assumes_independent_noise()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hole": 8}, "method.hole is 8, expected an odd number; write 7 or 9"),
        ({"hole": 0}, "invalid value 0 for method.hole"),
        ({"hole": 33}, "invalid value 33 for method.hole"),
        ({"hole_at_test": 2}, "method.hole_at_test is 2, expected an odd number; write 1 or 3"),
    ],
)
def test_a_wrong_hole_is_reported(fields, message):
    with pytest.raises(UserError, match=message):
        atbsn(**fields)


def test_every_weight_learns_from_the_smallest_crop_with_the_largest_hole():
    torch.manual_seed(0)
    method = atbsn(hole=31)
    net = method.make_net(NetMaker("unet_ssdn", 1, {}))
    method.loss(net, {"input": torch.rand(1, 1, net.smallest_crop, net.smallest_crop)}, 0)["loss"].backward()
    for name, parameter in net.named_parameters():
        taps = parameter.grad.flatten(2).ne(0).any(1).any(0) if parameter.ndim == 4 else parameter.grad.ne(0)
        assert taps.any() if parameter.ndim == 1 else taps.all(), name


def test_a_net_without_a_blind_spot_is_refused():
    with pytest.raises(UserError, match="net=dncnn has no form with a blind spot, which this method needs"):
        atbsn().make_net(NetMaker("dncnn", 1, {}))
    with pytest.raises(UserError, match="this one's is one pixel; use net=unet_ssdn or net=tmbsn"):
        atbsn().make_net(NetMaker("dbsn", 1, {"features": 2}))


def windows(noisy, hole, shape=np.maximum):
    """Return (N, values), what lies around each pixel of an image (H, W) and not in its hole, and (N,), the pixels.

    ``shape`` is np.maximum for a square of side ``hole``, np.add for a diamond of that width.
    """
    around = torch.nn.functional.unfold(noisy[None, None], WINDOW)[0]
    middle = np.arange(WINDOW) - WINDOW // 2
    seen = torch.from_numpy(shape(abs(middle[:, None]), abs(middle)) > hole // 2).flatten()
    return around[seen].T.double(), around[WINDOW**2 // 2].double()


def linear_predictor(images, noise, *hole):
    """Return the weights of the best linear prediction of a noisy pixel from beyond a hole, by least squares."""
    squares, products = 0, 0
    for index, clean in enumerate(images):
        noisy = noise.corrupt(clean[None], batch_rng(0, 0, torch.tensor([index]))).noisy[0, 0]
        seen, pixel = windows(noisy - 0.5, *hole)
        squares, products = squares + seen.T @ seen, products + seen.T @ pixel
    return torch.linalg.solve(squares, products)


def score(weights, images, noise, *hole):
    """Return the mean PSNR of what the predictor makes of noisy images."""
    scores = []
    for index, clean in enumerate(images):
        noisy = noise.corrupt(clean[None], batch_rng(1, 0, torch.tensor([index]))).noisy[0, 0]
        restored = windows(noisy - 0.5, *hole)[0] @ weights + 0.5
        inner = clean[0, WINDOW // 2 : -(WINDOW // 2), WINDOW // 2 : -(WINDOW // 2)]
        scores.append(psnr(restored.view(inner.shape), inner))
    return np.mean(scores)


def crops(folder, count, side):
    paths = sorted(folder.glob("*.png"))
    return [to_tensor(read_image(path).pixels)[:1, :side, :side] for path in paths[:: len(paths) // count][:count]]


@pytest.mark.parametrize(
    ("noise", "best"), [("gauss25", {1}), ("corr25_0.6", {3, 5}), ("corr25_0.8", {5}), ("corr25_1", {5, 7})]
)
def test_a_hole_must_cover_the_correlation_and_more_is_waste(mirror, noise, best):
    """No network: the best linear prediction from beyond a hole, learnt on noisy images, scored against clean ones."""
    noise, train, test = parse_noise(noise), crops(mirror / "bsd400", 20, 120), crops(mirror / "bsd68", 8, 120)
    found = {hole: score(linear_predictor(train, noise, hole), test, noise, hole) for hole in (1, 3, 5, 7, 9)}
    largest = max(found, key=found.get)
    assert largest in best, found
    assert found[9] < found[largest] - 0.2
    if best != {1}:  # a blind spot of one pixel leaves correlated noise nearly as it is: 20.2 dB
        assert found[1] < 21.5 < found[largest] - 1, found


def test_a_diamond_that_covers_the_correlation_loses_less_than_the_square_around_it(mirror):
    noise, train, test = parse_noise("corr25_0.8"), crops(mirror / "bsd400", 20, 120), crops(mirror / "bsd68", 8, 120)
    for side in (5, 7, 9):
        square, diamond = (
            score(linear_predictor(train, noise, side, shape), test, noise, side, shape)
            for shape in (np.maximum, np.add)
        )
        assert (diamond > square) == (side > 5), (side, diamond, square)  # a diamond of 5 covers too little


def test_the_diamond_of_tmbsn_is_trained_in_the_same_way():
    torch.manual_seed(0)
    method = atbsn()
    net = method.make_net(NetMaker("tmbsn", 1, {"features": 8}))
    noisy = torch.rand(1, 1, 24, 20)
    method.loss(net, {"input": noisy}, 0)["loss"].backward()
    assert all(parameter.grad.any() for parameter in net.parameters())
    with torch.no_grad():
        assert len(method.student_targets(net, noisy)) == 7
        assert torch.equal(method.predict(net, noisy, None, None), net(noisy, 2))


def test_the_shift_leaves_out_a_hole_of_its_side():
    assert [shift(hole) for hole in (0, 1, 3, 5, 7, 9, 11)] == [0, 1, 2, 3, 4, 5, 6]

import pytest
import torch

from denoise.nets import NetMaker

# Laine et al. 2019, appendix: inputs and outputs of the 3x3 convolutions, with 3 channels; then of the 1x1 ones.
TABLE = {
    "enc_conv0": (3, 48), "enc_conv1": (48, 48), "enc_conv2": (48, 48), "enc_conv3": (48, 48), "enc_conv4": (48, 48),
    "enc_conv5": (48, 48), "enc_conv6": (48, 48), "dec_conv5a": (96, 96), "dec_conv5b": (96, 96),
    "dec_conv4a": (144, 96), "dec_conv4b": (96, 96), "dec_conv3a": (144, 96), "dec_conv3b": (96, 96),
    "dec_conv2a": (144, 96), "dec_conv2b": (96, 96), "dec_conv1a": (99, 96), "dec_conv1b": (96, 96),
}  # fmt: skip
HEAD = {
    False: {"nin_a": (96, 96), "nin_b": (96, 96), "nin_c": (96, 9)},
    True: {"nin_a": (384, 384), "nin_b": (384, 96), "nin_c": (96, 9)},
}


def make(blind_spot, outputs=9, channels=3):
    torch.manual_seed(0)
    return NetMaker("unet_ssdn", channels, {})(outputs=outputs, blind_spot=blind_spot)


@pytest.mark.parametrize("blind_spot", [False, True])
def test_the_layers_are_those_of_the_paper(blind_spot):
    weights = {name.removesuffix(".weight"): p.shape for name, p in make(blind_spot).named_parameters() if p.ndim == 4}
    assert {name: (shape[1], shape[0]) for name, shape in weights.items()} == TABLE | HEAD[blind_spot]
    assert {name for name, shape in weights.items() if shape[2:] == (1, 1)} == set(HEAD[blind_spot])
    assert {shape[2:] for name, shape in weights.items() if name in TABLE} == {(3, 3)}


@pytest.mark.parametrize("blind_spot", [False, True])
def test_there_are_as_many_parameters_as_the_table_sums_to(blind_spot):
    body = sum(9 * inputs * outputs + outputs for inputs, outputs in TABLE.values())
    head = sum(inputs * outputs + outputs for inputs, outputs in (HEAD[blind_spot] | {"nin_c": (96, 3)}).values())
    count = sum(p.numel() for p in make(blind_spot, outputs=3).parameters())
    assert count == body + head == (1_268_547 if blind_spot else 1_102_371)


def test_weights_are_he_normal_and_the_last_layer_has_gain_one():
    weights = {name: p.detach() for name, p in make(True).named_parameters()}
    assert weights["dec_conv3a.weight"].std() == pytest.approx((2 / (144 * 9)) ** 0.5, rel=0.02)
    assert weights["nin_a.weight"].std() == pytest.approx((2 / 384) ** 0.5, rel=0.02)
    assert weights["nin_c.weight"].std() == pytest.approx((1 / 96) ** 0.5, rel=0.1)
    assert all(not p.any() for name, p in weights.items() if name.endswith("bias"))


def test_both_forms_keep_the_shape_and_differ_only_in_their_head():
    net, plain = make(True), make(False)
    assert net(torch.rand(2, 3, 32, 64)).shape == (2, 9, 32, 64)
    assert set(net.state_dict()) == set(plain.state_dict())


def test_the_gradient_reaches_every_parameter_of_the_blind_form():
    net = make(True, channels=1)
    net(torch.rand(1, 1, 64, 32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("side", [64, 96])
def test_crops_below_the_smallest_leave_weights_that_never_learn(side):
    net = make(True, channels=1)
    net(torch.rand(1, 1, side, side)).square().mean().backward()
    moved = {name: p.grad.ne(0).any(1).any(0).tolist() for name, p in net.named_parameters() if p.shape[2:] == (3, 3)}
    still = {name: taps for name, taps in moved.items() if taps != [[True] * 3] * 3}
    assert (net.smallest_crop, make(False).smallest_crop) == (96, 32)
    assert still == ({} if side == 96 else {"enc_conv6.weight": [[False] * 3, [True] * 3, [True] * 3]})


def test_rotations_in_one_batch_and_in_two_give_the_same():
    net, square = make(True), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(tuple(net._above(square, together=True)), tuple(net._above(square, together=False)))


def test_a_turned_image_exchanges_the_half_planes():
    net, image = make(True), torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        straight = net._above(image, together=False)
        turned = net._above(torch.rot90(image, 1, (2, 3)), together=False)
    for turn in range(4):
        torch.testing.assert_close(turned[turn], straight[(turn + 1) % 4])

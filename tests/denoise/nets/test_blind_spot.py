"""No output pixel of the form with a blind spot depends on the input pixel at its place: exactly, not nearly."""

import shutil

import pytest
import torch

from denoise.images.tensors import pad, unpad
from denoise.nets import NetMaker


def make(channels=3, outputs=9):
    torch.manual_seed(0)
    net = NetMaker("unet_ssdn", channels, {})(outputs=outputs, blind_spot=True)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def places(height, width):
    """The corners, the borders and inner pixels of even and odd rows and columns."""
    return [
        (0, 0), (0, width - 2), (height - 1, width - 1), (height - 1, 6), (7, 0),
        (1, 1), (2, 3), (height // 2, width // 2 - 1),
    ]  # fmt: skip


def influence(function, channels, size, at):
    """Return (P, H, W), how strongly the output at each of P places depends on each input pixel."""
    torch.manual_seed(1)
    noisy = torch.rand(len(at), channels, *size, requires_grad=True)
    answer = function(noisy)
    chosen = torch.stack([answer[number, :, row, column] for number, (row, column) in enumerate(at)])
    weights = torch.randn(chosen.shape)
    (chosen.float() * weights).sum().backward()
    return noisy.grad.abs().amax(dim=1)


def assert_blind(grads, at):
    for grad, (row, column) in zip(grads, at, strict=True):
        assert grad[row, column] == 0, f"the output at {(row, column)} sees its own input"
        window = grad[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert (window != 0).sum() == window.numel() - 1, f"the output at {(row, column)} misses a neighbour"


@pytest.mark.parametrize(("size", "channels"), [((32, 32), 1), ((32, 32), 3), ((64, 32), 3), ((32, 64), 3)])
def test_an_output_depends_on_all_neighbours_and_not_on_its_own_pixel(size, channels):
    at = places(*size)
    assert_blind(influence(make(channels), channels, size, at), at)


def test_changing_a_pixel_does_not_change_the_output_at_its_place():
    net, at = make(), places(32, 32)
    noisy = torch.rand(1, 3, 32, 32).repeat(len(at), 1, 1, 1)
    changed = noisy.clone()
    for number, (row, column) in enumerate(at):
        changed[number, :, row, column] += 100
    with torch.no_grad():
        before, after = net(noisy), net(changed)
    for number, (row, column) in enumerate(at):
        difference = (after - before)[number].abs().amax(dim=0)
        assert difference[row, column] < 1e-5
        assert difference.median() > 1e-3


@pytest.mark.parametrize("size", [(33, 32), (17, 43), (31, 63)])
def test_the_blind_spot_survives_padding_of_odd_sizes(size):
    """At every pixel that the reflection does not show a second time; of those it does, a copy is in sight."""
    net, (height, width) = make(), size

    def through_padding(noisy):
        return unpad(net(pad(noisy, 32)), height, width)

    image = torch.zeros(1, 1, *size, requires_grad=True)
    pad(image, 32).sum().backward()
    once = (image.grad[0, 0] == 1).nonzero().tolist()
    at = once[:: len(once) // 6]
    assert_blind(influence(through_padding, 3, size, at), at)


def test_the_blind_spot_is_exact_under_autocast():
    net, at = make(), [(0, 5), (14, 17)]  # few: bfloat16 is slow where the processor has none

    def rounded(noisy):
        with torch.autocast("cpu", torch.bfloat16):
            return net(noisy)

    assert rounded(torch.rand(1, 3, 32, 32)).dtype == torch.bfloat16
    assert_blind(influence(rounded, 3, (32, 32), at), at)


@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_the_blind_spot_is_exact_with_channels_last(size):
    net, at = make().to(memory_format=torch.channels_last), places(*size)

    def reordered(noisy):
        return net(noisy.contiguous(memory_format=torch.channels_last))

    assert_blind(influence(reordered, 3, size, at), at)


def assert_hole(grads, at, shift):
    """Exactly zero in the square of side 2 shift - 1, not zero in the ring around it.

    Of the ring's corners, which are far along a row of the half plane that begins there, only some places see all.
    """
    for grad, (row, column) in zip(grads, at, strict=True):
        rows, columns = (abs(torch.arange(size) - place) for size, place in zip(grad.shape, (row, column), strict=True))
        away = torch.maximum(rows[:, None], columns)
        assert not grad[away < shift].any(), f"the output at {(row, column)} sees into its hole"
        ring = (away == shift) & (torch.minimum(rows[:, None], columns) <= 1)
        assert grad[ring].all(), f"the output at {(row, column)} misses the ring around its hole"


@pytest.mark.parametrize("shift", range(7))
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (32, 64)])
def test_the_last_shift_is_the_size_of_the_hole(shift, size):
    net, at = make(), places(*size)
    assert_hole(influence(lambda noisy: net(noisy, shift), 3, size, at), at, shift)


@pytest.mark.parametrize("shift", [0, 2, 5])
def test_the_hole_is_exact_after_padding_under_autocast_and_with_channels_last(shift):
    net, (height, width) = make(channels=1).to(memory_format=torch.channels_last), (57, 51)
    at = [(24, 21), (29, 14)]  # the reflection shows neither a second time, nor what is near

    def restore(noisy):
        padded = pad(noisy, 32).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return unpad(net(padded, shift), height, width)

    assert_hole(influence(restore, 1, (height, width), at), at, shift)


def test_heads_of_one_body_are_the_passes_with_each_hole():
    net, noisy = make(), torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        maps = net.body(noisy)
        for shift in range(5):
            assert torch.equal(net.head(maps, shift), net(noisy, shift))
        assert torch.equal(net(noisy, 1), net(noisy))


@pytest.mark.parametrize("branch", range(4))
def test_each_branch_sees_its_half_plane_and_nothing_else(branch):
    net, row, column = make(channels=1), 13, 18
    with torch.no_grad():
        silent = torch.ones(384, dtype=torch.bool)
        silent[96 * branch : 96 * branch + 96] = False
        net.nin_a.weight[:, silent] = 0
    seen = influence(net, 1, (32, 32), [(row, column)])[0] != 0
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    half = [rows < row, columns > column, rows > row, columns < column][branch]
    assert not seen[~half].any()
    assert seen[half].float().mean() > 0.5


def test_the_plain_form_sees_every_pixel():
    torch.manual_seed(0)
    net = NetMaker("unet_ssdn", 3, {})()
    at = places(32, 32)
    grads = influence(net, 3, (32, 32), at)
    assert all(grad[place] != 0 for grad, place in zip(grads, at, strict=True))


def test_the_captured_graph_has_the_blind_spot():
    net, at = make(channels=1, outputs=1), places(32, 32)
    assert_blind(influence(torch.compile(net, backend="aot_eager", fullgraph=True), 1, (32, 32), at), at)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_the_compiled_net_has_the_blind_spot(size):
    if not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    net, at = make(channels=1, outputs=1), places(*size)
    assert_blind(influence(torch.compile(net, fullgraph=True, dynamic=False), 1, size, at), at)

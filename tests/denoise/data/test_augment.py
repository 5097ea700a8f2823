import pytest
import torch

from denoise.data.augment import Symmetry, symmetry_group

IMAGE = torch.arange(12.0).view(1, 1, 3, 4)


@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        ((), 1),
        (("flip",), 2),
        (("flip_vertical",), 2),
        (("flip", "flip_vertical"), 4),
        (("rotate",), 4),
        (("flip", "rotate"), 8),
        (("rotate", "flip_vertical"), 8),
    ],
)
def test_the_groups_are_closed_and_their_members_differ(kinds, count):
    group = symmetry_group(kinds)
    square = torch.rand(1, 1, 4, 4)
    images = [symmetry.apply(square) for symmetry in group]
    assert len(group) == count
    assert torch.equal(images[0], square)
    assert all(not torch.equal(a, b) for n, a in enumerate(images) for b in images[:n])
    for first in group:
        for second in group:
            assert any(torch.equal(second.apply(first.apply(square)), image) for image in images)


@pytest.mark.parametrize("symmetry", symmetry_group(("flip", "rotate")), ids=str)
def test_undo_undoes(symmetry):
    assert torch.equal(symmetry.undo(symmetry.apply(IMAGE)), IMAGE)


def test_turns_are_the_quarter_turns_and_flip_is_left_to_right():
    turned = [symmetry.apply(IMAGE) for symmetry in symmetry_group(("rotate",))]
    expected = [torch.rot90(IMAGE, times, (-2, -1)) for times in range(4)]
    assert all(any(torch.equal(turn, image) for image in turned) for turn in expected)
    assert torch.equal(symmetry_group(("flip",))[1].apply(IMAGE), IMAGE.flip(-1))
    assert torch.equal(symmetry_group(("flip_vertical",))[1].apply(IMAGE), IMAGE.flip(-2))


def test_the_order_stays_because_a_sample_draws_a_number():
    plain = [Symmetry(), Symmetry(horizontal=True), Symmetry(vertical=True), Symmetry(vertical=True, horizontal=True)]
    turned = [Symmetry(True, symmetry.vertical, symmetry.horizontal) for symmetry in plain]
    assert symmetry_group(("flip",)) == plain[:2]
    assert symmetry_group(("flip_vertical", "flip")) == plain
    assert symmetry_group(("rotate",)) == [plain[0], turned[2], plain[3], turned[1]]
    assert symmetry_group(("flip", "rotate")) == symmetry_group(("flip_vertical", "rotate")) == plain + turned

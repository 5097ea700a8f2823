"""Where tiles lie, and their weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.errors import UserError
from denoise.images.tiles import Tiles


@settings(deadline=None)
@given(
    size=st.integers(1, 3000),
    multiple=st.sampled_from([1, 2, 8, 32]),
    tile=st.integers(32, 600),
    share=st.floats(0, 1),
    exact=st.booleans(),
)
def test_windows_cover_and_sum_to_one(size: int, multiple: int, tile: int, share: float, exact: bool) -> None:
    tile = tile // multiple * multiple
    tiles = Tiles(multiple, 1 << 20, tile, int(share * (tile - multiple)), exact)
    windows, _ = tiles.windows(size, 1)
    padded = -(-size // multiple) * multiple
    assert len(windows[0][1]) == min(tile, padded) if exact else len(windows[0][1]) <= tile
    total = torch.zeros(padded)
    for start, weight in windows:
        assert start % multiple == len(weight) % multiple == 0
        assert (weight >= 0).all()
        total[start : start + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_weights_are_smooth_and_drop_the_borders_of_tiles() -> None:
    ((_, first), (start, _), *_), _ = Tiles(32, 1 << 20, 512, exact=True).windows(2000, 1)
    overlap = 512 - start
    assert overlap >= 64
    assert (first[-(overlap // 4) :] == 0).all()
    assert first.diff().abs().max() < 0.06
    assert (first[:start] == 1).all()


def test_tiles_of_an_exact_side_show_a_net_as_much_as_they_can() -> None:
    """Others are as small as the image allows: two tiles of 65 for 90 pixels."""
    sides = [Tiles(1, 1 << 20, 80, 40, exact).sides(90, 50) for exact in (False, True)]
    assert sides == [(65, 50), (80, 50)]
    assert Tiles(1, 80 * 50 * 3, 80, 40, exact=True).together(90, 50) == 3


@pytest.mark.parametrize(("side", "overlap"), [(400, 64), (100, 50), (40, 20)])
def test_the_overlap_is_64_or_half_a_tile_unless_given(side: int, overlap: int) -> None:
    assert Tiles(1, 1 << 20, side).least_overlap == overlap


@pytest.mark.parametrize(("tile", "overlap"), [(64, 64), (64, 40), (32, 1), (32, None), (128, -1), (0, 0)])
def test_tile_and_overlap_that_do_not_go_together(tile: int, overlap: int | None) -> None:
    with pytest.raises(UserError, match="expected an overlap of 0 to"):
        Tiles(32, 1 << 20, tile, overlap)

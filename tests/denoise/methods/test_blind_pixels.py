"""Where pixels are hidden, and what replaces them."""

import pytest
import torch

from denoise.methods.blind_pixels import (
    HiddenPixels,
    box_side,
    draw_hidden_pixels,
    median_neighbours,
    uniform_neighbours,
)
from denoise.rng import batch_rng


def rng_of(samples, step=0, seed=0):
    return batch_rng(seed, step, torch.arange(samples))


def at(row, column, height, width, samples=1):
    """The same pixel in every sample."""
    rows = torch.full((samples, 1, 1), row)
    return HiddenPixels(rows, torch.full_like(rows, column), torch.ones_like(rows, dtype=torch.bool), height, width)


def numbered(height, width, samples=1):
    """Images whose values tell where they come from."""
    return torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width).expand(samples, -1, -1, -1)


def assert_uniform(counts):
    """Chi-square within five standard errors of its mean."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5, counts


@pytest.mark.parametrize(("mask_ratio", "side"), [(0.00198, 22), (0.005, 14), (0.01, 10), (0.25, 2), (1, 1)])
def test_the_box_has_the_side_of_the_original(mask_ratio, side):
    assert box_side(mask_ratio) == side


def test_every_whole_box_hides_exactly_one_pixel():
    mask = draw_hidden_pixels(rng_of(8), 3, 24, 32, 8).mask()
    per_box = mask.unfold(2, 8, 8).unfold(3, 8, 8).sum((4, 5))
    assert mask.shape == (8, 3, 24, 32)
    assert torch.equal(per_box, torch.ones(8, 3, 3, 4))


def test_a_box_that_the_border_cuts_hides_at_most_one_pixel_and_sometimes_none():
    mask = draw_hidden_pixels(rng_of(200), 1, 10, 10, 8).mask()
    corner = mask[:, 0, 8:, 8:].sum((1, 2))
    share = 2 * 2 / 64
    assert set(corner.tolist()) == {0, 1}
    assert abs(corner.mean() - share) < 5 * (share / 200) ** 0.5


def test_every_pixel_is_hidden_equally_often_up_to_the_border():
    samples, box = 20_000, 4
    mask = draw_hidden_pixels(rng_of(samples), 1, 6, 6, box).mask()  # the second boxes are cut in half
    often = mask.sum((0, 1))
    share = 1 / box**2
    assert ((often - samples * share).abs() < 5 * (samples * share * (1 - share)) ** 0.5).all(), often


def test_hidden_pixels_differ_between_samples_steps_channels_and_ranks_and_repeat_for_the_same_keys():
    first = draw_hidden_pixels(rng_of(4), 3, 64, 64, 8).mask()
    assert torch.equal(first, draw_hidden_pixels(rng_of(4), 3, 64, 64, 8).mask())
    assert not torch.equal(first, draw_hidden_pixels(rng_of(4, step=1), 3, 64, 64, 8).mask())
    second_rank = draw_hidden_pixels(batch_rng(0, 0, torch.arange(4, 8)), 3, 64, 64, 8).mask()
    planes = torch.cat([first, second_rank]).flatten(0, 1)
    assert len({tuple(plane.flatten().nonzero().flatten().tolist()) for plane in planes}) == len(planes)


def test_a_sample_hides_the_same_pixels_in_whatever_batch_it_comes():
    together = draw_hidden_pixels(rng_of(4), 1, 32, 32, 8).mask()
    alone = draw_hidden_pixels(batch_rng(0, 0, torch.tensor([2])), 1, 32, 32, 8).mask()
    assert torch.equal(together[2:3], alone)


def test_replacing_changes_the_hidden_pixels_and_nothing_else():
    image = torch.rand(3, 2, 30, 20)  # boxes of 8 are cut on both sides
    pixels = draw_hidden_pixels(rng_of(3), 2, 30, 20, 8)
    replaced = pixels.put(image, torch.full(pixels.rows.shape, 7.0))
    assert torch.equal(replaced, torch.where(pixels.mask().bool(), 7.0, image))


def test_one_plane_for_all_channels_replaces_the_pixel_as_a_whole():
    image = numbered(16, 16).expand(1, 3, -1, -1) + torch.tensor([0.0, 1000, 2000]).view(3, 1, 1)
    pixels = draw_hidden_pixels(rng_of(1), 1, 16, 16, 8)
    values = uniform_neighbours(image, pixels, 2, rng_of(1), with_centre=False)
    assert torch.equal(values[:, 1], values[:, 0] + 1000)
    assert torch.equal(pixels.put(image, values)[:, 2], pixels.put(image, values)[:, 0] + 2000)


@pytest.mark.parametrize("with_centre", [True, False])
@pytest.mark.parametrize(("row", "column"), [(4, 5), (0, 5), (1, 0), (8, 9), (0, 0)])
def test_replacements_are_uniform_over_the_window_that_lies_in_the_image(row, column, with_centre):
    height, width, radius, samples = 9, 10, 2, 20_000
    values = uniform_neighbours(
        numbered(height, width, samples), at(row, column, height, width, samples), radius, rng_of(samples),
        with_centre=with_centre,
    )  # fmt: skip
    window = {
        r * width + c
        for r in range(max(row - radius, 0), min(row + radius, height - 1) + 1)
        for c in range(max(column - radius, 0), min(column + radius, width - 1) + 1)
    }
    if not with_centre:
        window.remove(row * width + column)
    drawn, counts = values.flatten().long().unique(return_counts=True)
    assert set(drawn.tolist()) == window
    assert_uniform(counts.double())


@pytest.mark.parametrize("with_centre", [True, False])
def test_replacements_are_as_often_from_the_row_and_column_of_the_centre_as_chance_has_it(with_centre):
    samples = 20_000
    values = uniform_neighbours(
        numbered(5, 5, samples), at(2, 2, 5, 5, samples), 2, rng_of(samples), with_centre=with_centre
    )
    offset = torch.stack([values.long().flatten() // 5, values.long().flatten() % 5]) - 2
    assert (offset.double().mean(1).abs() < 5 * (2 * (25 / 24) / samples) ** 0.5).all()
    share = 5 / 25 if with_centre else 4 / 24
    for own in (offset == 0).double().mean(1):
        assert abs(own - share) < 5 * (share * (1 - share) / samples) ** 0.5


def test_replacements_are_drawn_anew_for_every_pixel_channel_and_sample():
    count = 2000
    rows = torch.full((2, 3, count), 4)  # the same pixel over and over, so that all windows are alike
    pixels = HiddenPixels(rows, rows, torch.ones_like(rows, dtype=torch.bool), 9, 9)
    drawn = uniform_neighbours(numbered(9, 9, 2).expand(-1, 3, -1, -1), pixels, 2, rng_of(2), with_centre=True)
    share, error = 1 / 25, (1 / 25 * 24 / 25 / count) ** 0.5
    for one, other in [
        (drawn[0, 0], drawn[0, 1]),
        (drawn[0, 1], drawn[0, 2]),
        (drawn[0, 0], drawn[1, 0]),
        (drawn[0, 0], drawn[0, 0].roll(1)),
    ]:
        assert abs((one == other).double().mean() - share) < 5 * error


def test_an_image_of_one_pixel_keeps_it():
    assert uniform_neighbours(torch.full((1, 1, 1, 1), 3.0), at(0, 0, 1, 1), 2, rng_of(1), with_centre=False) == 3


@pytest.mark.parametrize(("row", "column"), [(4, 4), (0, 4), (0, 0), (7, 1)])
def test_the_median_is_that_of_the_window_without_its_centre(row, column):
    image = torch.rand(1, 2, 8, 9, generator=torch.Generator().manual_seed(0))
    actual = median_neighbours(image, at(row, column, 8, 9), 2)
    for channel in range(2):
        window = [
            image[0, channel, r, c].item()
            for r in range(max(row - 2, 0), min(row + 3, 8))
            for c in range(max(column - 2, 0), min(column + 3, 9))
            if (r, c) != (row, column)
        ]
        window.sort()
        expected = 0.5 * (window[(len(window) - 1) // 2] + window[len(window) // 2])
        assert actual[0, channel, 0] == pytest.approx(expected)

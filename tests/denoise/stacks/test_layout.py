"""Axes, planes and their names."""

import numpy as np
import pytest

from denoise.errors import UserError
from denoise.stacks.layout import make_layout


def test_names_sort_as_the_planes_do():
    layout = make_layout("cells.tif", (12, 1, 2, 5, 6), "TZCYX")
    names = [layout.name(number) for number in range(len(layout))]
    assert names[:3] == ["t00_c0", "t00_c1", "t01_c0"]
    assert names == sorted(names)
    assert names[-1] == "t11_c1"
    assert make_layout("one.tif", (1, 5, 6), "TYX").name(0) == ""


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "plane", "count"),
    [
        ((4, 3, 5, 6), "TCYX", "each", (5, 6, 1), 12),
        ((4, 3, 5, 6), "TCYX", "joint", (5, 6, 3), 4),
        ((3, 4, 5, 6), "CTYX", "joint", (5, 6, 3), 4),
        ((4, 5, 6, 3), "TYXS", "each", (5, 6, 3), 4),
        ((4, 3, 5, 6), "TSYX", "each", (5, 6, 3), 4),
        ((4, 5, 6, 2), "TYXS", "each", (5, 6, 1), 8),
        ((6, 5, 4), "XYZ", "each", (5, 6, 1), 4),
        ((5, 6), "YX", "each", (5, 6, 1), 1),
    ],
)
def test_planes_and_back(shape, axes, channels, plane, count):
    layout, array = make_layout("a.tif", shape, axes, channels), np.arange(np.prod(shape)).reshape(shape)
    assert (layout.plane_shape, len(layout)) == (plane, count)
    copy = np.zeros_like(array)
    for number in range(count):
        pixels = layout.to_plane(array[layout.index(number)])
        assert pixels.shape == plane
        assert pixels[1, 0, 0] - pixels[0, 0, 0] == array.strides[axes.index("Y")] // array.itemsize
        copy[layout.index(number)] = layout.from_plane(pixels)
    np.testing.assert_array_equal(copy, array)


def test_one_channel_of_several():
    layout = make_layout("a.tif", (2, 3, 5, 6), "TCYX", "1")
    assert [layout.name(number) for number in range(len(layout)) if layout.chosen(number)] == ["t0_c1", "t1_c1"]


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "sentence"),
    [
        ((4, 5, 6), "YX", "each", "4x5x6"),
        ((4, 5, 6), "TZY", "each", "Y and X once each"),
        ((4, 5, 6), "T1X", "each", "expected 3 letters"),
        ((0, 5, 6), "TYX", "each", "no values"),
        ((2, 2, 5, 6), "CCYX", "each", "can be there once"),
        ((4, 5, 6), "TYX", "joint", "no C"),
        ((2, 5, 6), "CYX", "joint", "has 2 channels, networks take 1, or 3"),
        ((3, 5, 6, 3), "CYXS", "joint", "3 channels of colours"),
        ((2, 5, 6), "CYX", "2", "none of the number 2"),
        ((2, 5, 6), "CYX", "red", "use each, joint"),
    ],
)
def test_axes_that_do_not_fit_are_one_sentence(shape, axes, channels, sentence):
    with pytest.raises(UserError, match=sentence) as told:
        make_layout("cells.tif", shape, axes, channels)
    assert str(told.value).count(". ") == 0
    assert "cells.tif" in str(told.value) or "red" in str(told.value)

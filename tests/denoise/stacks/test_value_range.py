"""Ranges of values: what becomes 0 and 1, what is exact on the way back, and what the values of planes are like."""

import math

import numpy as np
import pytest

from denoise.errors import UserError
from denoise.stacks.options import StackOptions
from denoise.stacks.survey import Survey, is_far, survey
from denoise.stacks.value_range import TYPES, ValueRange, parse_range, type_range

RANGES = [ValueRange(0, 65535), ValueRange(100, 4095), ValueRange(-3.7, 1e4), ValueRange(-65504, 65504)]


def all_values(dtype: str) -> np.ndarray:
    """Return every value of a type of at most 16 bits, and a million of a larger one."""
    if dtype == "float32":
        bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
        return bits.view(np.float32)[np.isfinite(bits.view(np.float32))]
    values = np.arange(1 << (8 * np.dtype(dtype).itemsize)).astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value_range", RANGES, ids=str)
def test_no_change_is_exact_for_every_type_and_range(dtype, value_range):
    values = all_values(dtype)
    again = value_range.with_change(values, np.zeros(values.shape, np.float32))
    assert again.dtype == values.dtype
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("value_range", RANGES, ids=str)
def test_the_way_back_is_exact_for_integers(dtype, value_range):
    values = all_values(dtype)
    np.testing.assert_array_equal(value_range.from_unit(value_range.to_unit(values), dtype), values)


def test_a_change_is_in_units_of_the_range_and_stays_within_the_type():
    value_range, pixels = ValueRange(100, 300), np.array([100, 300, 250], np.uint16)
    np.testing.assert_array_equal(value_range.to_unit(pixels), np.array([0, 1, 0.75], np.float32))
    change = np.array([0.5, -2, 0.001], np.float32)
    np.testing.assert_array_equal(value_range.with_change(pixels, change), np.array([200, 0, 250], np.uint16))
    assert value_range.with_change(np.array([6e4], np.float16), np.array([1e3], np.float32))[0] == np.float16(65504)


def test_ranges_by_type_and_as_given():
    assert type_range("int16") == ValueRange(-32768, 32767)
    assert parse_range("100,4095.5") == ValueRange(100, 4095.5)
    assert str(parse_range("-1,1e4")) == "-1,10000"


@pytest.mark.parametrize("text", ["5", "5,5", "6,5", "a,b", "0,nan", "-inf,1", "1,2,3"])
def test_a_range_that_is_none_is_one_sentence(text):
    with pytest.raises(UserError, match="LOW,HIGH"):
        parse_range(text)


def test_options_are_looked_at_before_any_file():
    for options, sentence in (({"value_range": "min,max"}, "LOW,HIGH"), ({"channels": "red"}, "use each, joint")):
        with pytest.raises(UserError, match=sentence):
            StackOptions(**options)
    assert StackOptions(value_range="percentiles", channels="2").axes is None


def test_floats_have_no_range_by_their_type():
    with pytest.raises(UserError, match="no range by their type"):
        type_range("float32")


def test_a_survey_counts_planes_that_need_a_word_and_leaves_hot_pixels_out():
    plane = np.random.default_rng(0).normal(100, 10, (200, 200, 1)).astype(np.float32)
    hot, broken = plane.copy(), plane.copy()
    hot[3, 4] = 1e6
    broken[0, :2, 0] = np.nan, np.inf
    total = sum(map(survey, (plane, hot, broken, plane - 100, np.full((9, 9, 1), 7, np.uint8))), Survey())
    assert (total.planes, total.constant, total.negative, total.no_number) == (5, 1, 1, 1)
    assert -40 < total.low < -20
    assert 120 < total.high < 140
    assert list(total.remarks()) == [
        "1 of 5 planes constant",
        "1 of 5 planes with negative values",
        "1 of 5 planes with values that are no number",
    ]


def test_a_plane_of_a_few_photons_has_a_range_and_a_constant_one_has_none():
    dark = np.zeros((100, 100, 1), np.uint16)
    dark[5, 5] = 3
    assert survey(dark).measured_range("dark.tif") == ValueRange(0, 3)
    for nothing in (np.full((9, 9, 1), 7.0), np.full((9, 9, 1), math.nan)):
        with pytest.raises(UserError, match=r"dark.tif holds no values that differ"):
            survey(nothing).measured_range("dark.tif")


def test_values_far_outside_of_a_range_are_told_from_those_within():
    assumed = ValueRange(100, 4000)
    assert not is_far(ValueRange(90, 4100), assumed)
    assert not is_far(ValueRange(100, 600), assumed)
    assert is_far(ValueRange(0, 65535), assumed)
    assert is_far(ValueRange(-9000, 4000), assumed)
    assert is_far(ValueRange(0, 1), assumed)

import math

import pytest

from denoise.errors import UserError
from denoise.schedules import fixed, ramp, schedule


def test_the_ramp_up_is_not_squared():
    assert ramp(0, 0.1, 0.3) == 0
    assert ramp(0.05, 0.1, 0.3) == pytest.approx(0.5)
    assert ramp(0.025, 0.1, 0.3) == pytest.approx(0.5 - math.cos(math.pi / 4) / 2)


def test_the_ramp_down_is_squared():
    assert ramp(0.85, 0.1, 0.3) == pytest.approx(0.25)
    assert ramp(1.0, 0.1, 0.3) == pytest.approx(0)
    assert ramp(0.775, 0.1, 0.3) == pytest.approx((0.5 + math.cos(math.pi / 4) / 2) ** 2)


def test_the_rate_is_whole_between_the_ramps():
    assert ramp(0.1, 0.1, 0.3) == ramp(0.4, 0.1, 0.3) == ramp(0.7, 0.1, 0.3) == 1


def test_without_ramps_the_rate_is_fixed():
    assert [ramp(t, 0, 0) for t in (0, 0.5, 1)] == [fixed(t, 0.1, 0.3) for t in (0, 0.5, 1)] == [1, 1, 1]


def test_an_unknown_schedule_is_told():
    with pytest.raises(UserError, match="did you mean ramp"):
        schedule("rampp")

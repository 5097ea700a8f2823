import math

import pytest

from denoise.config import Train
from denoise.errors import UserError
from denoise.training.schedules import SCHEDULES, decay, fixed, multistep, ramp, schedule

pytestmark = pytest.mark.smoke

LAINE = Train(rampup=0.1, rampdown=0.3)


def test_the_ramp_up_is_not_squared():
    assert ramp(0, LAINE) == 0
    assert ramp(0.05, LAINE) == pytest.approx(0.5)
    assert ramp(0.025, LAINE) == pytest.approx(0.5 - math.cos(math.pi / 4) / 2)


def test_the_ramp_down_is_squared():
    assert ramp(0.85, LAINE) == pytest.approx(0.25)
    assert ramp(1.0, LAINE) == pytest.approx(0)
    assert ramp(0.775, LAINE) == pytest.approx((0.5 + math.cos(math.pi / 4) / 2) ** 2)


def test_the_factor_is_1_between_the_ramps():
    assert ramp(0.1, LAINE) == ramp(0.4, LAINE) == ramp(0.7, LAINE) == 1


def test_without_ramps_the_factor_is_fixed():
    flat = Train(rampup=0, rampdown=0)
    assert [ramp(t, flat) for t in (0, 0.5, 1)] == [fixed(t, LAINE) for t in (0, 0.5, 1)] == [1, 1, 1]


def test_the_decay_of_the_report_written_out():
    assert decay(0, LAINE) == 1
    assert decay(0.1, LAINE) == pytest.approx(0.5946036)  # 2^-0.75
    assert decay(1, LAINE) == pytest.approx(0.1655600, rel=1e-5)  # 11^-0.75


def test_the_milestones_of_20_epochs():
    spec = Train(milestones=(10 / 30, 20 / 30), gamma=0.2)  # MultiStep [10, 20] of 30 epochs
    factors = [multistep(epoch / 30, spec) for epoch in (0, 9, 10, 19, 20, 29)]
    assert factors == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_every_schedule_stays_between_0_and_1():
    for rate in SCHEDULES.values():
        assert all(0 <= rate(step / 100, Train()) <= 1 for step in range(101))


def test_an_unknown_schedule_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean ramp"):
        schedule("rampp")

"""Learning-rate schedules: the factor on ``train.lr`` as a function of the progress of training in [0, 1]."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from denoise.errors import UserError, nearest

if TYPE_CHECKING:
    from denoise.config import Train

Schedule = Callable[[float, "Train"], float]


def ramp(progress: float, spec: "Train") -> float:
    """Rise over the first ``rampup`` share, stay at 1, fall over the last ``rampdown`` share.

    The rise 0.5 - cos(pi t)/2 is not squared, the fall (0.5 + cos(pi t)/2)^2 is (Laine et al. 2019, and their code;
    Lehtinen et al. 2018 have the fall only).
    """
    factor = 1.0
    if spec.rampup > 0 and progress < spec.rampup:
        factor *= 0.5 - math.cos(math.pi * progress / spec.rampup) / 2
    if spec.rampdown > 0 and progress > 1 - spec.rampdown:
        t = (progress - (1 - spec.rampdown)) / spec.rampdown
        factor *= (0.5 + math.cos(math.pi * t) / 2) ** 2
    return factor


def fixed(progress: float, spec: "Train") -> float:
    """Stay at 1 throughout."""
    return 1.0


def decay(progress: float, spec: "Train") -> float:
    """Fall as (1 + 10 r)^-0.75 (Zhao, Gao and Sun, EE-559 report on Noise2Noise)."""
    return float((1 + 10 * progress) ** -0.75)


def multistep(progress: float, spec: "Train") -> float:
    """Fall by the factor ``gamma`` at each of ``milestones``, which are shares of the steps."""
    return float(spec.gamma ** sum(progress >= milestone for milestone in spec.milestones))


SCHEDULES: dict[str, Schedule] = {"ramp": ramp, "fixed": fixed, "decay": decay, "multistep": multistep}


def schedule(name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        UserError: an unknown name.
    """
    if name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise UserError(f"train.schedule={name} is not known{nearest(name, SCHEDULES)}; use one of {known}.")
    return SCHEDULES[name]

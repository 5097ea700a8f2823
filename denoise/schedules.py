"""Learning-rate schedules as functions of the progress of training in [0, 1]."""

import math
from collections.abc import Callable

from denoise.errors import UserError, nearest

Schedule = Callable[[float, float, float], float]


def ramp(progress: float, rampup: float, rampdown: float) -> float:
    """Rise over the first ``rampup`` share, stay at 1, fall over the last ``rampdown`` share.

    The rise 0.5 - cos(pi t)/2 is not squared, the fall (0.5 + cos(pi t)/2)^2 is (Laine et al. 2019, and their code).
    """
    factor = 1.0
    if rampup > 0 and progress < rampup:
        factor *= 0.5 - math.cos(math.pi * progress / rampup) / 2
    if rampdown > 0 and progress > 1 - rampdown:
        t = (progress - (1 - rampdown)) / rampdown
        factor *= (0.5 + math.cos(math.pi * t) / 2) ** 2
    return factor


def fixed(progress: float, rampup: float, rampdown: float) -> float:
    """Return 1: the learning rate never changes."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"ramp": ramp, "fixed": fixed}


def schedule(name: str) -> Schedule:
    """Return the schedule of a name."""
    if name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise UserError(f"train.schedule={name} is not known{nearest(name, SCHEDULES)}; use one of {known}.")
    return SCHEDULES[name]

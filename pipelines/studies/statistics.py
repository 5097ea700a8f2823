"""Means over seeds with their deviation, and the interval of a mean difference."""

import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, None of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of at least two values (Student's t)."""
    from scipy.stats import t

    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    margin = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation / len(values) ** 0.5
    return mean - margin, mean + margin

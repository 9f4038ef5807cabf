"""Confidence intervals of figures over seeds and over instances.

Tables and comparisons of every learner take them from here. Input is plain numbers, one a run or a
share of so many instances; output is what a table shows.
"""

import math
import statistics
from collections.abc import Sequence


def wilson_interval(rate: float, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share `rate` of `count` independent trials (Wilson 1927)."""
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    half = z / (1 + z * z / count) * spread
    return max(0.0, centre - half), min(1.0, centre + half)


def student_t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean of two values or more, mean -+ t s / sqrt(n)."""
    mean, count = statistics.mean(values), len(values)
    half = t_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """The t for which Student's distribution has 95% of its mass in [-t, t]."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_mass(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _t_mass(t: float, freedom: int) -> float:
    """Mass in [-t, t]: the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total

"""95 % confidence intervals: of a mean over seeds, and of a proportion of images."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959964  # the 97.5 % quantile of the normal distribution: a two-sided interval of 95 %

# The same quantile of Student's t distribution, for 1 to 15 degrees of freedom
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class ConfidenceInterval:
    """A mean over seeds with its 95 % confidence interval."""

    mean: float
    low: float | None  # lower end of the interval; None if there is one seed only
    high: float | None  # upper end of the interval; None if there is one seed only
    values: tuple[float, ...]  # one value for each seed


def confidence_interval(
    values: Sequence[float], minimum: float = -math.inf, maximum: float = math.inf
) -> ConfidenceInterval:
    """The mean of at least one value and its interval by Student's t distribution, clipped to [minimum, maximum]."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return ConfidenceInterval(mean, None, None, tuple(values))
    t = _STUDENT_T[n - 2] if n - 2 < len(_STUDENT_T) else 2.0
    half_width = t * statistics.stdev(values) / math.sqrt(n)
    return ConfidenceInterval(mean, max(minimum, mean - half_width), min(maximum, mean + half_width), tuple(values))


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval (low, high) of a proportion (Wilson 1927).

    It takes the images for independent, which images of one prompt are not quite.
    """
    if count == 0:
        return 0.0, 1.0
    proportion, z = successes / count, Z_95 * Z_95 / count
    center = (proportion + z / 2) / (1 + z)
    half_width = math.sqrt(proportion * (1 - proportion) * z + z * z / 4) / (1 + z)
    return max(0.0, center - half_width), min(1.0, center + half_width)

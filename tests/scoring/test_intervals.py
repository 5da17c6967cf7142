"""Intervals: what they cover, and where they end."""

import math

import pytest
import torch

from unspeckle.scoring.intervals import ConfidenceInterval, confidence_interval, wilson_interval


def test_intervals_are_those_of_students_t() -> None:
    interval = confidence_interval([1.0, 2.0, 3.0, 4.0])
    half_width = 3.182 * math.sqrt(5 / 3) / 2  # t for three degrees of freedom
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.5, 2.5 - half_width, 2.5 + half_width))
    assert confidence_interval([1.0]) == ConfidenceInterval(1.0, None, None, (1.0,))
    assert confidence_interval([0.9, 1.0, 0.95], 0.0, 1.0).high == 1.0


def test_95_of_100_intervals_over_four_seeds_contain_the_true_mean() -> None:
    values = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    intervals = [confidence_interval(row) for row in values.tolist()]
    correct = sum(i.low <= 7 <= i.high for i in intervals if i.low is not None and i.high is not None)
    assert 0.935 < correct / 2000 < 0.965


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),  # statsmodels.stats.proportion.proportion_confint(method="wilson")
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (50, 100, 0.403832, 0.596168)],
)
def test_intervals_of_proportions(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-6)


def test_wilsons_interval_contains_the_proportions_that_do_not_reject_the_count() -> None:
    """The set of p with |successes - n p| ≤ z √(n p (1 - p))."""
    for successes, count in ((3, 17), (16, 17), (40, 400)):
        for edge in wilson_interval(successes, count):
            expected = 1.959964 * math.sqrt(count * edge * (1 - edge))
            assert abs(successes - count * edge) == pytest.approx(expected)

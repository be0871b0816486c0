"""How well a median is known: the interval covers as often as the binomial distribution says."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest

from pytest_attn.perf.spread import half_width, median_interval


def ranks(count: int) -> tuple[int, int]:
    low, high = median_interval(range(count))
    return int(low), int(high)


def coverage(count: int) -> float:
    """The exact probability that the true median lies between the interval's ranks, for a continuous distribution.

    The number of samples below it is binomial with p = 1/2; it must be above the lower and not above the upper rank.
    """
    low, high = ranks(count)
    return sum(math.comb(count, below) for below in range(low + 1, high + 1)) / 2.0**count


@pytest.mark.parametrize("count", [*range(10, 100), 500])
def test_the_interval_covers_the_median_about_95_times_in_100(count: int) -> None:
    # Ranks are whole numbers, so that the coverage cannot be 0.95 itself: at ten it steps from 0.89 to 0.98.
    assert 0.92 <= coverage(count) <= 0.98


@pytest.mark.parametrize("count", [10, 25, 100])
def test_the_interval_covers_a_skewed_distribution_as_often(count: int) -> None:
    draw, trials, covered = random.Random(count), 4000, 0
    for _ in range(trials):
        low, high = median_interval([draw.expovariate(math.log(2)) for _ in range(count)])
        covered += low <= 1 <= high  # the median of that distribution
    assert covered / trials == pytest.approx(coverage(count), abs=0.015)


@pytest.mark.parametrize("count", range(1, 60))
def test_the_interval_is_symmetric_around_the_median(count: int) -> None:
    low, high = ranks(count)
    assert 0 <= low <= median(range(count)) <= high <= count - 1
    assert low + high == count - 1


def test_few_samples() -> None:
    assert median_interval([3.0]) == (3.0, 3.0)
    assert half_width([3.0]) == 0
    assert median_interval([4.0, 2.0]) == (2.0, 4.0)
    assert half_width([4.0, 2.0]) == pytest.approx(1 / 3)


def test_half_width_is_relative_and_zero_for_constants() -> None:
    assert half_width([7.0] * 20) == 0
    samples = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert half_width([1000 * sample for sample in samples]) == pytest.approx(half_width(samples))
    assert half_width([0.0, 0.0, 0.0]) == math.inf

"""What a figure can show: metrics, the questions that titles ask about them, and how values read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_attn.report.words import digits, joules, points, seconds, size, times


@dataclass(frozen=True, slots=True)
class Metric:
    """Columns of a value and of its p10-p90 spread, its axis label, and the words about it.

    ``question`` is asked with a direction and an axis. ``more_is_better`` decides which value of a row is the best,
    ``base`` what a round number is (sizes count in powers of two), and ``log`` the axis: time and memory are on a log
    axis, since what matters there is the ratio.
    """

    key: str
    column: str
    low: str | None
    high: str | None
    name: str
    label: str
    question: str
    show: Callable[[float, int], str]
    more_is_better: bool = False
    base: int = 10
    log: bool = True


#: Those that the reader of the page chooses from.
METRICS = {
    "time": Metric(
        *("time", "time", "time_p10", "time_p90", "Time", "Time (median)"),
        *("How does {direction} time grow with {axis}?", seconds),
    ),
    "tflops": Metric(
        *("tflops", "tflops", "tflops_p10", "tflops_p90", "TFLOP/s", "Useful TFLOP/s"),
        *("How does {direction} speed in TFLOP/s change with {axis}?", digits),
        more_is_better=True,
        log=False,
    ),
    "memory": Metric(
        *("memory", "memory", None, None, "Memory", "Peak memory over the inputs"),
        *("How does {direction} peak memory grow with {axis}?", size),
        base=2,
    ),
}

PEAK_AT_CLOCK = Metric(
    *("peak-at-clock", "percent_of_peak_at_clock", "peak_at_clock_p10", "peak_at_clock_p90"),
    *("Percent of peak", "Percent of the peak at the clock measured"),
    *("How much of the peak at its real clock does {direction} reach, by {axis}?", points),
    more_is_better=True,
    log=False,
)
ENERGY = Metric(
    *("energy", "energy_per_token", None, None, "Energy per token", "Energy per token (one layer)"),
    *("How much energy does a token cost {direction}, by {axis}?", joules),
)
BACKWARD = Metric(
    *("backward", "backward_ratio", "backward_ratio_low", "backward_ratio_high"),
    *("Backward over forward", "Backward time over forward time"),
    *("How many times as long as forward is backward, by {axis}?", times),
    log=False,
)

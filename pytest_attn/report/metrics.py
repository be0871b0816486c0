"""What a figure can show: the three metrics, the questions that titles ask about them, and how values read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_attn.report.words import digits, seconds, size


@dataclass(frozen=True, slots=True)
class Metric:
    """Columns of a value and of its p10-p90 spread, its axis label, and the words about it.

    ``question`` is asked with a direction and an axis. ``more_is_better`` decides which value of a row is the best.
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

    @property
    def base(self) -> int:
        """The base of round numbers: sizes count in powers of two."""
        return 2 if self.key == "memory" else 10

    @property
    def log(self) -> bool:
        """Whether a figure's values are on a log axis: time and memory are, since what matters there is the ratio."""
        return not self.more_is_better


METRICS = {
    "time": Metric(
        *("time", "time", "time_p10", "time_p90", "Time", "Time (median)"),
        *("How does {direction} time grow with {axis}?", seconds),
    ),
    "tflops": Metric(
        *("tflops", "tflops", "tflops_p10", "tflops_p90", "TFLOP/s", "Useful TFLOP/s"),
        *("How does {direction} speed in TFLOP/s change with {axis}?", digits),
        more_is_better=True,
    ),
    "memory": Metric(
        *("memory", "memory", None, None, "Memory", "Peak memory over the inputs"),
        *("How does {direction} peak memory grow with {axis}?", size),
    ),
}

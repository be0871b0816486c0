"""What every output shows of a verdict: its numbers with units, and which verdicts are worth showing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_attn.gate.verdict import TIME, Outcome, Verdict
from pytest_attn.text import count, seconds


def quantity(metric: str, value: float | None) -> str:
    """Return ``value`` of ``metric`` with its unit, ``-`` for ``None``.

    >>> quantity("time", 0.0123), quantity("peak_bytes", 3 << 20), quantity("kernel_count", 4.0)
    ('12.30 ms', '3.00 MiB', '4')
    """
    if value is None:
        return "-"
    if metric == TIME:
        return seconds(value)
    if metric.endswith("_bytes"):
        return _bytes(value)
    return f"{value:.4g}"


def change(verdict: Verdict) -> str:
    """Return the movement as ``+5.0 %``; empty where there is none to tell."""
    # Adding zero takes the sign off a negative one.
    return "" if verdict.ratio is None else f"{round(100 * (verdict.ratio - 1), 1) + 0.0:+.1f} %"


def summary(verdicts: Sequence[Verdict], code: int) -> str:
    """Return the last line: how many of each, and what the gate says."""
    times = [verdict for verdict in verdicts if verdict.metric == TIME]
    exact = [verdict for verdict in verdicts if verdict.metric != TIME]
    parts = [f"{number} {word}" for word, number in _tally(times, always=Outcome.SLOWER)]
    if lost := sum(verdict.lost for verdict in verdicts):
        parts.append(f"{lost} LOST (measured in base, not in head)")
    line = f"attn gate: {count(len(times), 'cell')}: {', '.join(parts)}"
    if exact:
        words = ", ".join(f"{number} {word}" for word, number in _tally(exact))
        line += f"; {count(len(exact), 'exact metric')}: {words}"
    return f"{line}: {'FAIL' if code else 'ok'}"


def _tally(verdicts: Sequence[Verdict], always: Outcome | None = None) -> list[tuple[str, int]]:
    tally = Counter(verdict.outcome for verdict in verdicts)
    words = {verdict.outcome: verdict.word for verdict in verdicts if not verdict.lost}
    return [
        (words.get(outcome, outcome.value), tally[outcome])
        for outcome in Outcome
        if tally[outcome] or outcome is always
    ]


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f} B"

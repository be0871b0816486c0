"""Whether everything moved together, which one change to one kernel does not do: the machine is the likelier cause."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pytest_attn.gate.thresholds import Thresholds
from pytest_attn.gate.verdict import TIME, Verdict

_FEWEST_CELLS = 6


def common_shift(verdicts: Sequence[Verdict], thresholds: Thresholds = Thresholds()) -> float | None:
    """Return the ratio, head over base, by which unrelated implementations moved alike, or ``None``.

    It is the ratio in the middle when every one of at least two implementations has its own middle beyond the
    threshold on the same side. A shift explains verdicts and changes none: code that all share may be slower, too.
    """
    ratios: dict[str, list[float]] = {}
    for verdict in verdicts:
        if verdict.metric == TIME and verdict.ratio is not None:
            ratios.setdefault(verdict.impl, []).append(verdict.ratio)
    everything = [ratio for each in ratios.values() for ratio in each]
    if len(ratios) < 2 or len(everything) < _FEWEST_CELLS:
        return None
    middles = [statistics.median(each) for each in ratios.values()]
    edge = 1 + thresholds.relative
    together = min(middles) > edge or max(middles) < 1 / edge
    return statistics.median(everything) if together else None

"""Two runs in, a verdict for every cell out, and the exit code that follows."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_attn.gate.comparable import NotComparable, refuse_unlike
from pytest_attn.gate.pairing import pair
from pytest_attn.gate.rule import judge
from pytest_attn.gate.thresholds import Thresholds
from pytest_attn.gate.verdict import Outcome, Verdict
from pytest_attn.perf.record import Run


def compare(base: Run, head: Run, thresholds: Thresholds = Thresholds()) -> list[Verdict]:
    """Return a verdict for every (implementation, problem, direction) of both runs, the worst first.

    Args:
        base: what was, for instance the run of the main branch.
        head: what is.
        thresholds: how far a median must move.

    Raises:
        NotComparable: the runs are of another machine, contract or grid, or have no ok cell in common.
    """
    refuse_unlike(base, head)
    verdicts = [judge(cell, thresholds) for cell in pair(base, head)]
    if all(verdict.ratio is None for verdict in verdicts):
        raise NotComparable("the runs have no cell in common that is ok in both")
    return sorted(verdicts, key=lambda verdict: verdict.badness)


def exit_code(verdicts: Sequence[Verdict], *, fail_on_lost: bool = False) -> int:
    """Return 1 when a cell is slower (or, when asked, lost), otherwise 0."""
    return int(any(v.outcome is Outcome.SLOWER or (fail_on_lost and v.lost) for v in verdicts))

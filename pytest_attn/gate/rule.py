"""The rule for two stored runs: one :class:`~pytest_attn.gate.verdict.Verdict` for a cell.

A median that moved must have moved far enough as a share *and* in seconds *and* clear of the noise of both sides:
the ranges from the 10th to the 90th percentile must not touch. Rounds of one process are not independent, so a test
on them (Mann-Whitney, say) would call every drift of the clock a change; the rule asks for a visible gap instead. It
cannot see all that changed between the two processes, which is why a stored run stays the weaker form of the gate.

A device that was throttled or shared, or a clock that explains the movement, makes it ``unsure``.

Dividing both sides by what a control, another implementation, took for the same problem in the same run takes out
what moved both: ``judge(cell, thresholds, control=1.1)`` where the control took 1.1 times as long in the head.
"""

from __future__ import annotations

import math

from pytest_attn.gate.evidence import disturbance, sm_mhz
from pytest_attn.gate.missing import no_data
from pytest_attn.gate.pairing import Cell
from pytest_attn.gate.thresholds import Thresholds
from pytest_attn.gate.verdict import Outcome, Verdict
from pytest_attn.perf.record import Record, Time
from pytest_attn.text import seconds


def judge(cell: Cell, thresholds: Thresholds, *, control: float = 1.0, any_contract: bool = False) -> Verdict:
    """Return the verdict on ``cell``; ``no-data`` unless each side has exactly one record and both are ok.

    Args:
        cell: both sides.
        thresholds: of any cell; what they except is looked up.
        control: head over base of the control, by which the head is divided before it is judged.
        any_contract: compare records under two contracts as well.
    """
    if unmeasured := no_data(cell, any_contract=any_contract):
        return unmeasured
    (base,), (head,) = cell.base, cell.head
    assert base.time_s is not None
    assert head.time_s is not None
    limits = thresholds.for_cell(cell.key)
    time = head.time_s
    level = Time(time.median / control, time.p10 / control, time.p90 / control, time.n)
    outcome, code, sentence = _moved(base.time_s, level, limits, limits.floor_s(base.contract))
    if outcome in (Outcome.SLOWER, Outcome.FASTER) and (doubt := _doubt(base, head, control, limits)):
        outcome, (code, why) = Outcome.UNSURE, doubt
        sentence = f"{sentence}, but {why}"
    sentence += limits.said
    return Verdict(*cell.key, outcome, code, sentence, base.time_s.median, level.median, threshold=limits.relative)


def _doubt(base: Record, head: Record, control: float, thresholds: Thresholds) -> tuple[str, str] | None:
    """Return code and words of what else may explain a movement: a held back or shared device, another clock."""
    for side, record in (("base", base), ("head", head)):
        if code := disturbance(record):
            return code, f"the {side}'s device was {'throttled' if code == 'throttle' else 'shared'}"
    before, after = sm_mhz(base), sm_mhz(head)
    # A control was timed under the same clock, so that dividing by it has taken the clock out.
    if control != 1.0 or before is None or after is None:
        return None
    assert base.time_s is not None
    assert head.time_s is not None
    clock, ratio = after / before, head.time_s.median / base.time_s.median
    cycles = ratio * clock
    if abs(math.log(clock)) <= math.log1p(thresholds.clock):
        return None
    if abs(math.log(cycles)) > math.log1p(thresholds.relative) and (cycles > 1) is (ratio > 1):
        return None
    return "clock", f"the head's SM clock was {100 * (clock - 1):+.1f} %"


def _moved(base: Time, head: Time, thresholds: Thresholds, floor_s: float) -> tuple[Outcome, str, str]:
    ratio = head.median / base.median
    share = f"{100 * thresholds.relative:.3g} %"
    if abs(math.log(ratio)) <= math.log1p(thresholds.relative):
        return Outcome.SAME, "within", f"moved less than {share}"
    if abs(head.median - base.median) <= floor_s:
        return Outcome.SAME, "floor", f"moved less than {seconds(floor_s)}"
    if min(base.n, head.n) < thresholds.min_rounds:
        rounds = f"{base.n} and {head.n} rounds, at least {thresholds.min_rounds} are needed"
        return Outcome.UNSURE, "few-rounds", f"moved more than {share}, but on {rounds}"
    if base.p10 <= head.p90 and head.p10 <= base.p90:
        ranges = f"{seconds(base.p10)} to {seconds(base.p90)} and {seconds(head.p10)} to {seconds(head.p90)}"
        return Outcome.UNSURE, "overlap", f"moved more than {share}, but p10-p90 overlap: {ranges}"
    outcome = Outcome.SLOWER if ratio > 1 else Outcome.FASTER
    return outcome, "clear", f"moved more than {share}, and p10-p90 are apart"

"""The rule for two stored runs: one :class:`~pytest_attn.gate.verdict.Verdict` for a cell.

A median that moved must have moved far enough as a share *and* in seconds *and* clear of the noise of both sides:
the ranges from the 10th to the 90th percentile must not touch. Rounds of one process are not independent, so a test
on them (Mann-Whitney, say) would call every drift of the clock a change; the rule asks for a visible gap instead. It
cannot see what changed between the two processes, which is why a stored run stays the weaker form of the gate.
"""

from __future__ import annotations

import math

from pytest_attn.gate.pairing import Cell
from pytest_attn.gate.thresholds import Thresholds
from pytest_attn.gate.verdict import Outcome, Verdict
from pytest_attn.perf.record import Record, Time
from pytest_attn.text import seconds


def judge(cell: Cell, thresholds: Thresholds) -> Verdict:
    """Return the verdict on ``cell``; ``no-data`` unless each side has exactly one record and both are ok."""
    if unmeasured := _no_data(cell):
        return unmeasured
    (base,), (head,) = cell.base, cell.head
    assert base.time_s is not None
    assert head.time_s is not None
    outcome, code, sentence = _moved(base.time_s, head.time_s, thresholds, thresholds.floor_s(base.contract))
    return Verdict(*_key(cell), outcome, code, sentence, base.time_s.median, head.time_s.median)


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


def _no_data(cell: Cell) -> Verdict | None:
    """Return the verdict on a cell that cannot be compared, or ``None`` when it can."""
    base, head = _only(cell.base), _only(cell.head)
    base_ok, head_ok = (any(record.status == "ok" for record in side) for side in (cell.base, cell.head))
    lost = base_ok and not head_ok
    if len(cell.base) > 1 or len(cell.head) > 1:
        side = "base" if len(cell.base) > 1 else "head"
        return _none(cell, "twice", f"the {side} has more than one record of this cell", lost)
    if base is None:
        return _none(cell, "new", "the base does not have this cell")
    if head is None:
        why = f": {cell.impl} was not there, {cell.head_missing}" if cell.head_missing else ""
        return _none(cell, "gone", f"the head does not have this cell{why}", lost)
    if not base_ok and not head_ok:
        code = f"both-{base.status}" if base.status == head.status else "both-none"
        return _none(cell, code, f"base: {_said(base)}; head: {_said(head)}")
    if not head_ok:
        return _none(cell, f"head-{head.status}", f"the base measured it, the head did not: {_said(head)}", lost)
    if not base_ok:
        return _none(cell, f"base-{base.status}", f"the head measured it, the base did not: {_said(base)}")
    if base.contract != head.contract:
        return _none(cell, "contract", f"measured under {base.contract} and under {head.contract}")
    return None


def _none(cell: Cell, code: str, sentence: str, lost: bool = False) -> Verdict:
    base, head = _median(_only(cell.base)), _median(_only(cell.head))
    return Verdict(*_key(cell), Outcome.NO_DATA, code, sentence, base, head, lost)


def _key(cell: Cell) -> tuple[str, str, str]:
    return cell.impl, cell.problem_id, cell.direction


def _only(records: tuple[Record, ...]) -> Record | None:
    return records[0] if len(records) == 1 else None


def _median(record: Record | None) -> float | None:
    """Return the median of a record whose number may be compared."""
    return record.time_s.median if record is not None and record.status == "ok" and record.time_s else None


def _said(record: Record) -> str:
    return f"{record.status}, {record.reason}" if record.reason else record.status

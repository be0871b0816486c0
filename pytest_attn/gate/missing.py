"""The verdict on a cell that one side or both did not measure."""

from __future__ import annotations

from pytest_attn.gate.pairing import Cell
from pytest_attn.gate.verdict import Outcome, Verdict
from pytest_attn.perf.record import Record


def only(records: tuple[Record, ...]) -> Record | None:
    """Return the one record of a side, ``None`` where there is none or more than one."""
    return records[0] if len(records) == 1 else None


def no_data(cell: Cell, *, any_contract: bool = False) -> Verdict | None:
    """Return the verdict on a cell that cannot be compared, or ``None`` when each side has one record that is ok.

    Records under two contracts are not compared either, unless ``any_contract``.
    """
    base, head = only(cell.base), only(cell.head)
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
    if base.contract != head.contract and not any_contract:
        return _none(cell, "contract", f"measured under {base.contract} and under {head.contract}")
    return None


def _none(cell: Cell, code: str, sentence: str, lost: bool = False) -> Verdict:
    base, head = _median(only(cell.base)), _median(only(cell.head))
    return Verdict(*cell.key, Outcome.NO_DATA, code, sentence, base, head, lost)


def _median(record: Record | None) -> float | None:
    """Return the median of a record whose number may be compared."""
    return record.time_s.median if record is not None and record.status == "ok" and record.time_s else None


def _said(record: Record) -> str:
    return f"{record.status}, {record.reason}" if record.reason else record.status

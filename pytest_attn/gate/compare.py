"""Two stored runs in, a verdict for every cell out, and the exit code that follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set

from pytest_attn.gate.comparable import NotComparable, refuse_unlike
from pytest_attn.gate.control import Control, control_of
from pytest_attn.gate.exact import judge_exact, judge_resources
from pytest_attn.gate.missing import no_data
from pytest_attn.gate.pairing import Cell, pair
from pytest_attn.gate.rule import judge
from pytest_attn.gate.thresholds import STORED, Thresholds
from pytest_attn.gate.verdict import TIME, Outcome, Verdict
from pytest_attn.perf.record import Run


def compare(
    base: Run,
    head: Run,
    thresholds: Thresholds = STORED,
    *,
    allow: Set[str] = frozenset(),
    control: str | None = None,
) -> list[Verdict]:
    """Return a verdict on the time, and one on each exact metric, of every cell of both runs; the worst first.

    Those on the compiled kernels are of cells of their own (:func:`~pytest_attn.gate.exact.judge_resources`).

    Args:
        base: what was, for instance the run of the main branch.
        head: what is.
        thresholds: how far a median must move.
        allow: which of ``machine``, ``driver``, ``contract`` and ``grid`` may differ.
        control: name of an implementation; the others' times are judged relative to it, which takes out what moved
            all alike, and their heads are shown so.

    Raises:
        NotComparable: the runs differ in what ``allow`` does not name, have no ok cell in common, or none of the
            control.
    """
    refuse_unlike(base, head, allow)
    by = None if control is None else control_of(control, base, head)
    verdicts = []
    for cell in pair(base, head):
        verdict = _time(cell, thresholds, by, "contract" in allow)
        if base.grid != head.grid and verdict.code == "gone":
            verdict = dataclasses.replace(verdict, lost=False)
        verdicts.append(verdict)
        if len(cell.base) == len(cell.head) == 1:
            verdicts += judge_exact(cell.key, cell.base, cell.head, thresholds)
    if base.machine.get("device") == head.machine.get("device"):  # a build for another architecture is another
        verdicts += judge_resources([base], [head], thresholds)
    if all(verdict.ratio is None for verdict in verdicts if verdict.metric == TIME):
        raise NotComparable("the runs have no cell in common that is ok in both")
    return sorted(verdicts, key=lambda verdict: verdict.badness)


def exit_code(verdicts: Sequence[Verdict], fail_on_lost: bool = False) -> int:
    """Return 1 when a cell is slower (or, when asked, lost), otherwise 0."""
    return int(any(v.outcome is Outcome.SLOWER or (fail_on_lost and v.lost) for v in verdicts))


def _time(cell: Cell, thresholds: Thresholds, control: Control | None, any_contract: bool) -> Verdict:
    ratio = 1.0 if control is None else control.ratio(cell.key)
    if ratio is None and no_data(cell, any_contract=any_contract) is None:
        assert control is not None
        said = f"the control {control.impl} was not measured for this problem"
        return Verdict(*cell.key, Outcome.NO_DATA, "no-control", said)
    return judge(cell, thresholds, control=ratio or 1.0, any_contract=any_contract)

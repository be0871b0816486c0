"""Verdicts of runs taken in pairs, in two stages: what looks slower is measured again before it fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_attn.gate.comparable import NotComparable, refuse_unlike_pairs
from pytest_attn.gate.control import Control, control_of
from pytest_attn.gate.exact import judge_exact, judge_resources
from pytest_attn.gate.missing import no_data
from pytest_attn.gate.paired import judge_movement
from pytest_attn.gate.pairing import Cell, pair
from pytest_attn.gate.thresholds import Thresholds
from pytest_attn.gate.verdict import TIME, Key, Outcome, Verdict
from pytest_attn.perf.record import Run


@dataclass(frozen=True, slots=True)
class Pair:
    """A run of the base and a run of the head, taken one right after the other; ``order`` is ``AB`` or ``BA``."""

    base: Run
    head: Run
    order: str

    def __post_init__(self) -> None:
        if self.order not in ("AB", "BA"):
            raise ValueError(f"order {self.order!r} is not AB or BA")


def judge_pairs(pairs: Sequence[Pair], thresholds: Thresholds, control: str | None = None) -> list[Verdict]:
    """Return a verdict on the time, and one on each exact metric, of every cell; the worst first.

    Those on the compiled kernels are of cells of their own (:func:`~pytest_attn.gate.exact.judge_resources`).

    Args:
        pairs: all that were taken, one at least.
        thresholds: how far a median must move.
        control: name of an implementation; the others' times are judged relative to it.

    Raises:
        NotComparable: there are no pairs, the runs are of different machines, contracts or grids, have no ok cell in
            common, or none of the control.
    """
    refuse_unlike_pairs([(each.base, each.head) for each in pairs])
    controls = None if control is None else _controls(control, pairs)
    cells: dict[Key, list[tuple[int, Cell]]] = {}
    for index, each in enumerate(pairs):
        for cell in pair(each.base, each.head):
            cells.setdefault(cell.key, []).append((index, cell))
    verdicts = []
    for key, found in cells.items():
        verdicts.append(_judge_time(key, found, len(pairs), thresholds.for_cell(key), controls))
        base = [record for _, cell in found for record in cell.base]
        head = [record for _, cell in found for record in cell.head]
        verdicts += judge_exact(key, base, head, thresholds)
    verdicts += judge_resources([each.base for each in pairs], [each.head for each in pairs], thresholds)
    if all(verdict.ratio is None for verdict in verdicts if verdict.metric == TIME):
        raise NotComparable("the runs have no cell in common that is ok in both")
    return sorted(verdicts, key=lambda verdict: verdict.badness)


def suspects(verdicts: Sequence[Verdict]) -> list[Key]:
    """Return the cells that must be measured again before they fail: those whose time is slower, the worst first.

    Exact metrics need no second look.
    """
    return [verdict.key for verdict in verdicts if _suspect(verdict)]


def judge_confirmed(
    first: Sequence[Verdict], again: Sequence[Pair], thresholds: Thresholds, control: str | None = None
) -> list[Verdict]:
    """Return ``first`` with every suspect judged again: ``slower`` only if both stages say so, else ``unsure``.

    Args:
        first: what :func:`judge_pairs` returned.
        again: fresh pairs that hold the suspects; other cells in them are left alone. None at all (they could not be
            run) leaves every suspect unsure.
        thresholds: as for the first stage.
        control: as for the first stage.

    Raises:
        NotComparable: the fresh runs differ from each other in machine, contract or grid.
    """
    try:
        second = {v.key: v for v in judge_pairs(again, thresholds, control) if v.metric == TIME}
    except NotComparable as error:
        if error.names:
            raise
        second = {}
    verdicts = [_confirmed(each, second.get(each.key)) if _suspect(each) else each for each in first]
    return sorted(verdicts, key=lambda verdict: verdict.badness)


def _suspect(verdict: Verdict) -> bool:
    return verdict.outcome is Outcome.SLOWER and verdict.metric == TIME


def _confirmed(first: Verdict, second: Verdict | None) -> Verdict:
    if second is None:
        said = f"{first.sentence}; it could not be measured again"
        return dataclasses.replace(first, outcome=Outcome.UNSURE, code="not-again", sentence=said)
    said = f"{first.sentence}; again on fresh pairs: {second.sentence}"
    if second.outcome is Outcome.SLOWER:
        return dataclasses.replace(first, code="confirmed", sentence=said)
    code = "not-again" if second.outcome is Outcome.NO_DATA else "unconfirmed"
    return dataclasses.replace(first, outcome=Outcome.UNSURE, code=code, sentence=said)


def _judge_time(
    key: Key,
    found: Sequence[tuple[int, Cell]],
    taken: int,
    thresholds: Thresholds,
    controls: Sequence[Control | None] | None,
) -> Verdict:
    usable = [(index, cell) for index, cell in found if no_data(cell) is None]
    if not usable:
        return _unmeasured([cell for _, cell in found])
    factors: list[float] | None = None
    if controls is not None:
        with_control = [(each, ratio) for each in usable if (ratio := _ratio(controls[each[0]], key)) is not None]
        if not with_control:
            said = "the control was not measured for this problem"
            return Verdict(*key, Outcome.NO_DATA, "no-control", said)
        usable, factors = [each for each, _ in with_control], [ratio for _, ratio in with_control]
    records = [(cell.base[0], cell.head[0]) for _, cell in usable]
    movement = judge_movement(records, taken, thresholds, factors)
    return Verdict(
        *key,
        movement.outcome,
        movement.code,
        movement.sentence + thresholds.said,
        movement.base_s,
        movement.head_s,
        ratios=movement.ratios,
        threshold=thresholds.relative,
    )


def _unmeasured(cells: Sequence[Cell]) -> Verdict:
    """Return the verdict on a cell that no pair measured on both sides, told by the pair in which the base did best."""
    base_ok = [cell for cell in cells if any(record.status == "ok" for record in cell.base)]
    verdict = no_data((base_ok or list(cells))[0])
    assert verdict is not None
    head_ok = any(record.status == "ok" for cell in cells for record in cell.head)
    return dataclasses.replace(verdict, lost=bool(base_ok) and not head_ok)


def _controls(impl: str, pairs: Sequence[Pair]) -> list[Control | None]:
    controls: list[Control | None] = []
    for each in pairs:
        try:
            controls.append(control_of(impl, each.base, each.head))
        except NotComparable:
            controls.append(None)
    if not any(controls):
        raise NotComparable(f"the control {impl} has no cell that is ok in both runs of a pair")
    return controls


def _ratio(control: Control | None, key: Key) -> float | None:
    return None if control is None else control.ratio(key)

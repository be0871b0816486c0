"""The control: another implementation, timed in the same run, that shows how much the machine moved."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_attn.gate.comparable import NotComparable
from pytest_attn.gate.verdict import Key
from pytest_attn.perf.record import Run


@dataclass(frozen=True, slots=True)
class Control:
    """Head over base of the implementation ``impl``, by (problem id, direction)."""

    impl: str
    ratios: dict[tuple[str, str], float]

    def ratio(self, key: Key) -> float | None:
        """Return by what to divide the cell ``key``; ``None`` where the control was not measured on both sides.

        The control's own cells are divided by nothing, or they would never move.
        """
        impl, problem_id, direction = key
        return 1.0 if impl == self.impl else self.ratios.get((problem_id, direction))


def control_of(impl: str, base: Run, head: Run) -> Control:
    """Return the control ``impl`` of two runs.

    Raises :class:`~pytest_attn.gate.comparable.NotComparable` when the two have no ok cell of it in common.
    """
    before, after = (_medians(impl, run) for run in (base, head))
    ratios = {cell: after[cell] / before[cell] for cell in before.keys() & after.keys()}
    if not ratios:
        raise NotComparable(f"the control {impl} has no cell that is ok in both runs")
    return Control(impl, ratios)


def _medians(impl: str, run: Run) -> dict[tuple[str, str], float]:
    return {
        (record.problem.id, record.direction.value): record.time_s.median
        for record in run.records
        if record.impl == impl and record.status == "ok" and record.time_s is not None
    }

"""Cells: what each side of a comparison knows of one (implementation, problem, direction)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from pytest_attn.gate.verdict import Key
from pytest_attn.perf.record import Record, Run


@dataclass(frozen=True, slots=True)
class Cell:
    """The records of one key on both sides. More than one on a side is a run that measured it twice."""

    impl: str
    problem_id: str
    direction: str
    base: tuple[Record, ...] = ()
    head: tuple[Record, ...] = ()
    head_missing: str | None = None
    """Why the head's run did not have this implementation, where it says so."""

    @property
    def key(self) -> Key:
        """(implementation, problem id, direction)."""
        return self.impl, self.problem_id, self.direction


def pair(base: Run, head: Run) -> list[Cell]:
    """Return every cell of both runs once, in the order of the base, then what only the head has."""
    sides: dict[Key, tuple[list[Record], list[Record]]] = defaultdict(lambda: ([], []))
    for side, run in enumerate((base, head)):
        for record in run.records:
            sides[record.key][side].append(record)
    return [
        Cell(impl, problem, direction, tuple(old), tuple(new), _missing(head, impl))
        for (impl, problem, direction), (old, new) in sides.items()
    ]


def _missing(run: Run, impl: str) -> str | None:
    known = run.implementations.get(impl)
    reason = known.get("missing") if isinstance(known, dict) else None
    return None if reason is None else str(reason)

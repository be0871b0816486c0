"""Timed cells that share a problem and a direction are measured together, in turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Direction, Problem
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.measure import Measured, measure_group
from pytest_attn.perf.record import cell_key

if TYPE_CHECKING:
    from pytest_attn.session import AttnSession

Key = tuple[str, str, str]


class Groups:
    """What is to be measured together, and what came out of it and has not been reported yet."""

    def __init__(self, cells: Iterable[Key]) -> None:
        """Note the ``(implementation, problem id, direction)`` of every timed cell of the run, in order."""
        self._together: dict[tuple[str, str], list[str]] = {}
        for name, problem_id, direction in cells:
            self._together.setdefault((problem_id, direction), []).append(name)
        self._outcomes: dict[Key, Measured | Unavailable] = {}
        self._instruments: Instruments | None = None

    def instruments(self, session: AttnSession) -> Instruments:
        """Return what measures on the session's device, made at the first call."""
        if self._instruments is None:
            self._instruments = Instruments(session.device, session.contract, session.traced_by)
        return self._instruments

    def described(self) -> dict[str, object]:
        """Return what was measured with; empty where nothing was."""
        return {} if self._instruments is None else self._instruments.describe()

    def outcome(
        self, session: AttnSession, impl: Implementation, problem: Problem, direction: Direction
    ) -> Measured | Unavailable:
        """Return what ``impl`` measured, together with all that share its problem and direction.

        What an earlier run measured takes no turns again.
        """
        key = cell_key(impl.name, problem, direction)
        if key not in self._outcomes:
            self._measure(session, impl, problem, direction)
        return self._outcomes.pop(key)

    def _measure(self, session: AttnSession, impl: Implementation, problem: Problem, direction: Direction) -> None:
        names = self._together.pop((problem.id, direction.value), [])
        impls = [session.selected[name] for name in names if cell_key(name, problem, direction) not in session.resumed]
        if impl not in impls:  # a test with a problem or an implementation of its own, or the same cell once more
            impls = [impl]
        instruments = self.instruments(session)
        instruments.take_ceilings(problem.dtype)
        outcomes = measure_group(impls, problem, direction, instruments)
        for each, outcome in zip(impls, outcomes, strict=True):
            # None: another implementation of the group left the device unusable, and the run ends with that one.
            if outcome is not None:
                self._outcomes[cell_key(each.name, problem, direction)] = outcome
            if isinstance(outcome, Measured):
                session.keep(outcome)
        if cell_key(impl.name, problem, direction) not in self._outcomes:
            culprit = next(outcome for outcome in outcomes if isinstance(outcome, Measured) and outcome.lost_device)
            session.finished(culprit)
            session.end_if_device_is_lost(f"{culprit.record.impl} on {problem.id}: {culprit.record.reason}")

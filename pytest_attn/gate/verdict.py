"""The words of the gate: five outcomes, and a verdict on one cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What is said of a cell. Only ``slower`` fails a gate."""

    SLOWER = "slower"
    UNSURE = "unsure"
    FASTER = "faster"
    SAME = "same"
    NO_DATA = "no-data"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one (implementation, problem, direction).

    Attributes:
        impl: the implementation's name.
        problem_id: :attr:`attn_impls.Problem.id`.
        direction: ``fwd``, ``bwd`` or ``fwd_bwd``.
        outcome: one of five.
        code: the reason in one word, for programs: ``clear``, ``within``, ``floor``, ``overlap``, ``few-rounds``;
            for ``no-data``: ``gone``, ``new``, ``twice``, ``contract``, or ``head-``, ``base-`` or ``both-`` with the
            status (``head-oom``); ``both-none`` when the two sides have different ones.
        sentence: the reason in words.
        base_s: median of the base in seconds, ``None`` where it has none.
        head_s: median of the head in seconds, likewise.
        lost: the base measured it and the head did not: a regression of another kind, to be shown loudly.
    """

    impl: str
    problem_id: str
    direction: str
    outcome: Outcome
    code: str
    sentence: str
    base_s: float | None = None
    head_s: float | None = None
    lost: bool = False

    @property
    def ratio(self) -> float | None:
        """Head over base: 1.05 is five percent more time. ``None`` where a side has no time."""
        return None if self.base_s is None or self.head_s is None else self.head_s / self.base_s

    @property
    def badness(self) -> tuple[int, float, str, str, str]:
        """A key that sorts the worst first: slower, lost, unsure, other no-data, faster, same; then by movement."""
        rank = 1 if self.lost else _RANK[self.outcome]
        moved = 0.0 if self.ratio is None else math.log(self.ratio)
        by_movement = -abs(moved) if self.outcome is Outcome.UNSURE else -moved
        return rank, by_movement, self.impl, self.problem_id, self.direction

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON values."""
        return {
            "impl": self.impl,
            "problem_id": self.problem_id,
            "direction": self.direction,
            "verdict": self.outcome.value,
            "code": self.code,
            "sentence": self.sentence,
            "base_s": self.base_s,
            "head_s": self.head_s,
            "ratio": self.ratio,
            "lost": self.lost,
        }


_RANK = {Outcome.SLOWER: 0, Outcome.UNSURE: 2, Outcome.NO_DATA: 3, Outcome.FASTER: 4, Outcome.SAME: 5}

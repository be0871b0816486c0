"""The words of the gate: five outcomes, and a verdict on one metric of one cell."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

TIME = "time"

Key = tuple[str, str, str]
"""(implementation, problem id, direction): :attr:`pytest_attn.perf.record.Record.key`.

Of a compiled kernel it is (implementation, the kernel's name, ``build``).
"""


class Outcome(StrEnum):
    """What is said of a cell. Only ``slower`` fails a gate; of a metric in bytes it says that it grew."""

    SLOWER = "slower"
    UNSURE = "unsure"
    FASTER = "faster"
    SAME = "same"
    NO_DATA = "no-data"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one metric of one (implementation, problem, direction).

    Attributes:
        impl: the implementation's name.
        problem_id: :attr:`attn_impls.Problem.id`, or the name of a compiled kernel.
        direction: ``fwd``, ``bwd`` or ``fwd_bwd``; of a compiled kernel ``build``.
        outcome: one of five.
        code: the reason in one word, for programs. A change or none, of pairs: ``paired``, ``confirmed`` (by fresh
            pairs), ``within`` (the share), ``floor``; of stored runs: ``clear``, ``within``, ``floor``; of exact
            metrics: ``grew``, ``shrank``, ``changed``, ``within``. Unsure: ``inconsistent``, ``clock``, ``throttle``,
            ``shared``, ``few-pairs``, ``unconfirmed``, ``not-again`` (could not be measured again), ``overlap``,
            ``few-rounds``, ``varies``, and ``grew`` or ``changed`` where that is a warning. No data: ``gone``,
            ``new``, ``twice``, ``contract``, ``no-control``, ``head-none``, or ``head-``, ``base-`` or ``both-`` with
            the status (``head-oom``); ``both-none`` when the two sides have different ones.
        sentence: the reason in words.
        base: what the base has, in seconds for ``time``, otherwise in the metric's own unit; over several processes
            the median. ``None`` where it has nothing, or nothing that is a number.
        head: what the head has, likewise.
        lost: the base measured it and the head did not: a regression of another kind, to be shown loudly.
        metric: ``time`` or one of :data:`pytest_attn.gate.thresholds.EXACT`.
        ratios: head over base of each pair that was used, in the order they were taken; empty for stored runs.
        threshold: the share that a time had to move by; ``None`` where nothing was compared.
    """

    impl: str
    problem_id: str
    direction: str
    outcome: Outcome
    code: str
    sentence: str
    base: float | None = None
    head: float | None = None
    lost: bool = False
    metric: str = TIME
    ratios: tuple[float, ...] = ()
    threshold: float | None = None

    @property
    def key(self) -> Key:
        """The cell that this is about."""
        return self.impl, self.problem_id, self.direction

    @property
    def ratio(self) -> float | None:
        """Head over base, of pairs the median: 1.05 is five percent more. ``None`` where a side has no number."""
        if self.ratios:
            return math.exp(statistics.median(map(math.log, self.ratios)))
        return None if self.base is None or self.head is None or self.base <= 0 else self.head / self.base

    @property
    def word(self) -> str:
        """The outcome as a person reads it: ``LOST``, and ``more`` and ``less`` for what is no time."""
        if self.lost:
            return "LOST"
        words = {Outcome.SLOWER: "more", Outcome.FASTER: "less"} if self.metric != TIME else {}
        return words.get(self.outcome, self.outcome.value)

    @property
    def quiet(self) -> bool:
        """Whether it needs no one's attention: the same, or measured by neither side."""
        return self.outcome is Outcome.SAME or self.code.startswith("both-")

    @property
    def badness(self) -> tuple[int, float, str, str, str, str]:
        """A key that sorts the worst first: slower, lost, unsure, other no-data, faster, same; then by movement."""
        rank = 1 if self.lost else _RANK[self.outcome]
        moved = 0.0 if not self.ratio else math.log(self.ratio)
        by_movement = -abs(moved) if self.outcome is Outcome.UNSURE else -moved
        return rank, by_movement, *self.key, self.metric

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON values."""
        return {
            "impl": self.impl,
            "problem_id": self.problem_id,
            "direction": self.direction,
            "metric": self.metric,
            "verdict": self.outcome.value,
            "code": self.code,
            "sentence": self.sentence,
            "base": self.base,
            "head": self.head,
            "ratio": self.ratio,
            "ratios": list(self.ratios),
            "threshold": self.threshold,
            "lost": self.lost,
        }


_RANK = {Outcome.SLOWER: 0, Outcome.UNSURE: 2, Outcome.NO_DATA: 3, Outcome.FASTER: 4, Outcome.SAME: 5}

"""The rule for runs taken in pairs: the gate's stronger form.

Each pair is a process of the base and a process of the head, one right after the other, the order turned around from
pair to pair (A B B A ...), so that what drifts hits both. Of each process only the median counts: its rounds share a
clock, an address space and a compiled kernel, and are one sample, not fifty. A cell moved when

- the median of the pairs' ratios is beyond ``relative``, and
- the median difference is beyond a floor in seconds, and
- at least ``agreement`` of the pairs moved the same way by more than ``pair_relative``, and
- the movement is there in clock cycles as well, where the SM clocks of the two sides differ by more than ``clock``.

A process that was throttled by heat or a fault, or that shared the device, takes its pair with it
(:mod:`~pytest_attn.gate.evidence`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_attn.gate.evidence import disturbance, sm_mhz
from pytest_attn.gate.thresholds import Thresholds
from pytest_attn.gate.verdict import Outcome
from pytest_attn.perf.record import Record
from pytest_attn.text import seconds


@dataclass(frozen=True, slots=True)
class Movement:
    """What the pairs of one cell say. ``base_s`` and ``head_s`` are medians over processes, in seconds."""

    outcome: Outcome
    code: str
    sentence: str
    base_s: float
    head_s: float
    ratios: tuple[float, ...]


def judge_movement(
    pairs: Sequence[tuple[Record, Record]], taken: int, thresholds: Thresholds, control: Sequence[float] | None = None
) -> Movement:
    """Return how one cell moved.

    Args:
        pairs: (base, head) of each pair in which both are ok; one at least.
        taken: how many pairs were run, for the sentence.
        thresholds: of this cell.
        control: head over base of the control in each of ``pairs``, by which the ratios are divided. A control shares
            its run's clock, so the clock is not looked at then.

    >>> from attn_impls.problem import FULL, Direction, Problem
    >>> from pytest_attn.perf.record import Time
    >>> def record(median):
    ...     time = Time(median, median, median, 50)
    ...     problem = Problem(1, 4, 4, 128, 128, 64, "bf16", FULL)
    ...     return Record("naive", problem, Direction.FWD, "ok", "events/2", time_s=time)
    >>> judge_movement([(record(1e-3), record(1.05e-3))] * 7, 7, Thresholds()).sentence
    '+5.0 %, and 7 of 7 pairs are slower by more than 1 %'
    """
    factors = [1.0] * len(pairs) if control is None else list(control)
    every = [(base, head, factor) for (base, head), factor in zip(pairs, factors, strict=True)]
    undisturbed = [each for each in every if not disturbance(each[0]) and not disturbance(each[1])]
    enough = len(undisturbed) >= thresholds.min_pairs
    # With too few, all of them, so that the numbers shown are the best there are.
    used = undisturbed if enough else every
    ratios = tuple(_median(head) / _median(base) / factor for base, head, factor in used)
    base_s = statistics.median(_median(base) for base, _, _ in used)
    head_s = statistics.median(_median(head) / factor for _, head, factor in used)
    clocks = None if control is not None else _clocks([(base, head) for base, head, _ in used])
    outcome, code, sentence = judge_ratios(ratios, base_s, thresholds.floor_s(pairs[0][0].contract), thresholds, clocks)
    if not enough:
        code, why = _too_few(pairs, thresholds)
        outcome, sentence = Outcome.UNSURE, f"{len(undisturbed)} of {taken} pairs can be used, {why}"
    return Movement(outcome, code, sentence, base_s, head_s, ratios)


def judge_ratios(
    ratios: Sequence[float],
    base_s: float,
    floor_s: float,
    thresholds: Thresholds,
    clocks: Sequence[float] | None = None,
) -> tuple[Outcome, str, str]:
    """Return outcome, code and sentence for the ratios, head over base, of pairs.

    Args:
        ratios: one a pair.
        base_s: the base's median in seconds.
        floor_s: least difference in seconds.
        thresholds: of this cell.
        clocks: SM clock of the head over that of the base, one a pair, or ``None`` where it is not known.
    """
    ratio = _middle(ratios)
    moved = f"{100 * (ratio - 1):+.1f} %"
    if abs(math.log(ratio)) <= math.log1p(thresholds.relative):
        return Outcome.SAME, "within", f"{moved}, less than {100 * thresholds.relative:.3g} %"
    if abs(ratio - 1) * base_s <= floor_s:
        return Outcome.SAME, "floor", f"{moved}, which is less than {seconds(floor_s)}"
    outcome, word = (Outcome.SLOWER, "slower") if ratio > 1 else (Outcome.FASTER, "faster")
    agree = agreeing(ratios, thresholds)
    pairs = f"{agree} of {len(ratios)} pairs are {word} by more than {100 * thresholds.pair_relative:.3g} %"
    if agree < thresholds.needed(len(ratios)):
        return Outcome.UNSURE, "inconsistent", f"{moved}, but only {pairs}"
    if clocks is not None:
        clock = _middle(clocks)
        cycles = [ratio * clock for ratio, clock in zip(ratios, clocks, strict=True)]
        differs = abs(math.log(clock)) > math.log1p(thresholds.clock)
        if differs and not _moved_alike(cycles, ratio > 1, thresholds):
            return Outcome.UNSURE, "clock", f"{moved}, but the head's SM clock was {100 * (clock - 1):+.1f} %"
    return outcome, "paired", f"{moved}, and {pairs}"


def agreeing(ratios: Sequence[float], thresholds: Thresholds) -> int:
    """Return how many pairs moved as the median did, by more than ``thresholds.pair_relative``."""
    least, sign = math.log1p(thresholds.pair_relative), math.copysign(1.0, _middle(ratios) - 1)
    return sum(sign * math.log(ratio) > least for ratio in ratios)


def _moved_alike(ratios: Sequence[float], slower: bool, thresholds: Thresholds) -> bool:
    ratio = _middle(ratios)
    far = abs(math.log(ratio)) > math.log1p(thresholds.relative) and (ratio > 1) is slower
    return far and agreeing(ratios, thresholds) >= thresholds.needed(len(ratios))


def _too_few(pairs: Sequence[tuple[Record, Record]], thresholds: Thresholds) -> tuple[str, str]:
    """Return code and reason of too few pairs: what disturbed them, where without that there were enough."""
    needed = f"at least {thresholds.min_pairs} are needed"
    if len(pairs) < thresholds.min_pairs:
        return "few-pairs", needed
    found = {what for pair in pairs for record in pair if (what := disturbance(record))}
    if "throttle" in found:
        return "throttle", f"{needed}; the device was throttled in the others"
    return "shared", f"{needed}; other processes used the device in the others"


def _clocks(pairs: Sequence[tuple[Record, Record]]) -> list[float] | None:
    clocks = []
    for base, head in pairs:
        before, after = sm_mhz(base), sm_mhz(head)
        if before is None or after is None:
            return None
        clocks.append(after / before)
    return clocks


def _middle(ratios: Sequence[float]) -> float:
    return math.exp(statistics.median(math.log(ratio) for ratio in ratios))


def _median(record: Record) -> float:
    assert record.time_s is not None
    return record.time_s.median

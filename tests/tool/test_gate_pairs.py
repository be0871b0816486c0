"""Runs in pairs: the rule, what disturbs it, the second stage, the control."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from pytest_attn.gate import (
    NotComparable,
    Outcome,
    Pair,
    Thresholds,
    Verdict,
    exit_code,
    judge_confirmed,
    judge_pairs,
    suspects,
)
from pytest_attn.gate.thresholds import Override
from pytest_attn.perf.record import Record
from tests.tool.gate_runs import LARGE, MACHINE, SMALL, record, run_of

MS = 1e-3
US = 1e-6
DEFAULTS = Thresholds()


def clocked(median: float, mhz: float | None = None, reasons: Sequence[str] = (), foreign: int = 0) -> Record:
    telemetry = {"sm_mhz": mhz, "clock_reasons": list(reasons), "foreign_processes": foreign}
    return dataclasses.replace(record(median), telemetry=telemetry)


def taken(*sides: tuple[Record | Sequence[Record], Record | Sequence[Record]], **changes: Any) -> list[Pair]:
    """Pairs of runs of one record or of several a side, in the order A B B A."""
    several = [[[side] if isinstance(side, Record) else side for side in pair] for pair in sides]
    return [
        Pair(run_of(*base, **changes), run_of(*head, **changes), "AB" if index % 2 == 0 else "BA")
        for index, (base, head) in enumerate(several)
    ]


def ratios(*values: float, base: float = 1 * MS) -> list[Pair]:
    return taken(*((record(base), record(base * value)) for value in values))


def judge(pairs: Sequence[Pair], thresholds: Thresholds = DEFAULTS, control: str | None = None) -> Verdict:
    (verdict,) = [v for v in judge_pairs(pairs, thresholds, control) if v.key == ("naive", SMALL.id, "fwd")]
    return verdict


@pytest.mark.parametrize(
    ("values", "outcome", "code"),
    [
        ([1.0] * 7, "same", "within"),
        ([1.024] * 7, "same", "within"),
        ([1.026] * 7, "slower", "paired"),
        ([1 / 1.026] * 7, "faster", "paired"),
        # the median decides: one pair that a burst hit neither makes a slowdown nor hides one
        ([1.0] * 6 + [1.5], "same", "within"),
        ([1.05] * 6 + [0.7], "slower", "paired"),
        # 5 of 7 must agree
        ([1.05] * 5 + [1.0] * 2, "slower", "paired"),
        ([1.05] * 4 + [1.0] * 3, "unsure", "inconsistent"),
        ([1.05] * 4 + [1.009] * 3, "unsure", "inconsistent"),
        ([1.05] * 4 + [1.011] * 3, "slower", "paired"),
        ([0.95] * 4 + [1.0] * 3, "unsure", "inconsistent"),
        ([2.0] * 6, "unsure", "few-pairs"),
        ([1.0] * 6, "unsure", "few-pairs"),
    ],
)
def test_a_cell_moves_by_median_and_agreement(values: list[float], outcome: str, code: str) -> None:
    verdict = judge(ratios(*values))
    assert (verdict.outcome, verdict.code) == (outcome, code)
    assert verdict.ratios == pytest.approx(tuple(values))
    assert verdict.ratio == pytest.approx(sorted(values)[len(values) // 2], rel=0.03)


def test_a_movement_below_the_floor_in_seconds_is_none() -> None:
    assert judge(ratios(*[1.2] * 7, base=4 * US)).code == "floor"
    assert judge(ratios(*[1.2] * 7, base=6 * US)).code == "paired"
    on_cpu = taken(*((record(50 * US, contract="wall/2"), record(60 * US, contract="wall/2")) for _ in range(7)))
    assert judge(on_cpu).code == "floor"


def test_the_sentence_says_how_far_and_in_how_many_pairs() -> None:
    assert judge(ratios(*[1.05] * 6, 1.0)).sentence == "+5.0 %, and 6 of 7 pairs are slower by more than 1 %"
    assert judge(ratios(*[1.05] * 4, *[1.0] * 3)).sentence.startswith("+5.0 %, but only 4 of 7 pairs are slower")


def test_thresholds_can_be_those_of_a_pattern_of_cells() -> None:
    lenient = Thresholds(cells=(Override("naive * fwd", {"relative": 0.1}),))
    assert judge(ratios(*[1.05] * 7), lenient).code == "within"
    others = Thresholds(cells=(Override("flex *", {"relative": 0.1}), Override("* bwd", {"relative": 0.1})))
    assert judge(ratios(*[1.05] * 7), others).code == "paired"
    both = Thresholds(cells=(Override("naive *", {"relative": 0.1}), Override("*-q128-* fwd", {"relative": 0.01})))
    assert judge(ratios(*[1.05] * 7), both).code == "paired", "the last match has it"


def test_a_lower_clock_of_the_head_explains_what_it_covers() -> None:
    def at(ratio: float, mhz: float) -> Verdict:
        return judge(taken(*((clocked(1 * MS, 1980), clocked(ratio * MS, mhz)) for _ in range(7))))

    assert at(1.06, 1980).outcome is Outcome.SLOWER
    explained = at(1.06, 1870)
    assert (explained.outcome, explained.code) == (Outcome.UNSURE, "clock")
    assert "SM clock was -5.6 %" in explained.sentence
    assert at(1.2, 1870).outcome is Outcome.SLOWER, "13 % more cycles are left"
    assert at(1.06, 1950).outcome is Outcome.SLOWER, "1.5 % of the clock is within the tolerance"
    assert at(1.06, 2090).outcome is Outcome.SLOWER, "a higher clock explains no slowdown"
    assert at(1 / 1.06, 2100).code == "clock"


def test_without_clocks_the_time_alone_decides() -> None:
    pairs = taken(*((clocked(1 * MS, 1980), clocked(1.06 * MS)) for _ in range(7)))
    assert judge(pairs).outcome is Outcome.SLOWER


@pytest.mark.parametrize(
    ("hurt", "code"),
    [
        (clocked(1.5 * MS, 1400, ["hardware thermal slowdown"]), "throttle"),
        (clocked(1.5 * MS, 1980, foreign=1), "shared"),
    ],
)
def test_a_disturbed_process_takes_its_pair_with_it(hurt: Record, code: str) -> None:
    calm = (clocked(1 * MS, 1980), clocked(1 * MS, 1980))
    enough = judge(taken(*[(calm[0], hurt)] * 8, *[calm] * 7))
    assert (enough.outcome, enough.code, len(enough.ratios)) == (Outcome.SAME, "within", 7)
    for disturbed in ((calm[0], hurt), (hurt, calm[1])):
        few = judge(taken(*[disturbed] * 9, *[calm] * 6))
        assert (few.outcome, few.code) == (Outcome.UNSURE, code)
        assert few.sentence.startswith("6 of 15 pairs can be used, at least 7 are needed")


def test_a_power_cap_disturbs_nothing() -> None:
    capped = clocked(1.06 * MS, 1980, ["software power cap"])
    assert judge(taken(*[(clocked(1 * MS, 1980), capped)] * 7)).outcome is Outcome.SLOWER


def test_a_cell_that_no_head_measured_is_lost_and_one_that_some_did_is_judged() -> None:
    keep = record(1 * MS, problem=LARGE)
    oom = record(None, status="oom", reason="asked for 3 GiB")
    lost = judge(taken(*[([record(1 * MS), keep], [oom, keep])] * 7))
    assert (lost.outcome, lost.code, lost.lost) == (Outcome.NO_DATA, "head-oom", True)
    assert "asked for 3 GiB" in lost.sentence
    gone = judge(taken(*[([record(1 * MS), keep], [keep])] * 7))
    assert (gone.code, gone.lost) == ("gone", True)
    at_times = judge(taken(*[([oom, keep], [oom, keep])] * 2, *[([record(1 * MS), keep], [oom, keep])]))
    assert (at_times.code, at_times.lost) == ("head-oom", True), "told by the pair in which the base did best"
    mixed = taken(*[([record(1 * MS), keep], [record(1 * MS), keep])] * 7, *[([record(1 * MS), keep], [keep])] * 3)
    assert judge(mixed).outcome is Outcome.SAME
    assert judge(mixed[1:]).code == "few-pairs"
    new = judge(taken(*[([keep], [record(1 * MS), keep])] * 7))
    assert (new.code, new.lost) == ("new", False)


def test_only_what_is_slower_is_measured_again() -> None:
    pairs = taken(
        *[
            (
                [record(1 * MS), record(1 * MS, impl="flex"), record(1 * MS, impl="triton")],
                [record(1.05 * MS), record(1 * MS, impl="flex"), record(0.9 * MS, impl="triton")],
            )
        ]
        * 7
    )
    verdicts = judge_pairs(pairs, DEFAULTS)
    assert [v.outcome.value for v in verdicts] == ["slower", "faster", "same"]
    assert suspects(verdicts) == [("naive", SMALL.id, "fwd")]


def test_a_cell_fails_only_when_both_stages_say_so() -> None:
    first = judge_pairs(ratios(*[1.05] * 7), DEFAULTS)
    (confirmed,) = judge_confirmed(first, ratios(*[1.06] * 7), DEFAULTS)
    assert (confirmed.outcome, confirmed.code) == (Outcome.SLOWER, "confirmed")
    assert "again on fresh pairs: +6.0 %" in confirmed.sentence
    assert confirmed.ratio == pytest.approx(1.05)
    assert exit_code([confirmed]) == 1
    for again in (ratios(*[1.0] * 7), ratios(*[0.9] * 7), ratios(*[1.06] * 6)):
        (verdict,) = judge_confirmed(first, again, DEFAULTS)
        assert (verdict.outcome, verdict.code) == (Outcome.UNSURE, "unconfirmed")
        assert exit_code([verdict]) == 0


def test_what_cannot_be_measured_again_is_unsure_and_nothing_is_lost() -> None:
    keep = record(1 * MS, problem=LARGE)
    first = judge_pairs(taken(*[([record(1 * MS), keep], [record(1.05 * MS), keep])] * 7), DEFAULTS)
    nothing = taken(*[(record(1 * MS), record(None, status="error", reason="killed"))] * 7)
    for again in ([], nothing, taken(*[(keep, keep)] * 7)):
        unsure, same = judge_confirmed(first, again, DEFAULTS)
        assert (unsure.outcome, unsure.code) == (Outcome.UNSURE, "not-again")
        assert same.outcome is Outcome.SAME
    elsewhere = [Pair(pair.base, run_of(record(1), machine={}), "AB") for pair in ratios(1.05)]
    with pytest.raises(NotComparable, match="machine"):
        judge_confirmed(first, elsewhere, DEFAULTS)


def test_verdicts_that_are_no_suspects_pass_the_second_stage_untouched() -> None:
    first = judge_pairs(ratios(*[1.0] * 7), DEFAULTS)
    assert judge_confirmed(first, ratios(*[2.0] * 7), DEFAULTS) == first


def test_a_control_takes_out_what_moved_both() -> None:
    def with_control(head: float, control: float) -> list[Pair]:
        base = [record(1 * MS), record(2 * MS, impl="sdpa")]
        return taken(*[(base, [record(head * MS), record(control * 2 * MS, impl="sdpa")])] * 7)

    assert judge(with_control(1.2, 1.2)).outcome is Outcome.SLOWER
    assert judge(with_control(1.2, 1.2), control="sdpa").outcome is Outcome.SAME
    assert judge(with_control(1.0, 0.9), control="sdpa").outcome is Outcome.SLOWER
    verdicts = judge_pairs(with_control(1.0, 1.2), DEFAULTS, "sdpa")
    assert {v.impl: v.outcome.value for v in verdicts} == {"sdpa": "slower", "naive": "faster"}


def test_a_cell_without_a_control_has_no_verdict_and_no_control_at_all_is_refused() -> None:
    side = [record(1 * MS), record(1 * MS, impl="sdpa", problem=LARGE), record(1 * MS, problem=LARGE)]
    assert judge(taken(*[(side, side)] * 7), control="sdpa").code == "no-control"
    with pytest.raises(NotComparable, match="the control flex has no cell"):
        judge_pairs(ratios(*[1.0] * 7), DEFAULTS, "flex")


def test_runs_that_do_not_belong_together_are_refused() -> None:
    pairs = ratios(*[1.0] * 7)
    elsewhere = run_of(record(1 * MS), machine={**MACHINE, "device": "A100"})
    for odd in (Pair(elsewhere, elsewhere, "AB"), Pair(pairs[0].base, elsewhere, "BA")):
        with pytest.raises(NotComparable, match="device: NVIDIA H100 80GB HBM3 -> A100"):
            judge_pairs([*pairs, odd], DEFAULTS)
    with pytest.raises(NotComparable, match="no pairs"):
        judge_pairs([], DEFAULTS)
    with pytest.raises(NotComparable, match="the head holds no record that is ok in any of its 7 runs"):
        judge_pairs(taken(*[(record(1), record(None, status="error"))] * 7), DEFAULTS)
    with pytest.raises(NotComparable, match=r"contract \(events/1 -> events/2\)"):
        judge_pairs(taken(*[(record(1), record(1, contract="events/2"))] * 7), DEFAULTS)


def test_one_run_in_which_everything_failed_is_one_pair_less() -> None:
    failed = Pair(run_of(record(1 * MS)), run_of(record(None, status="error")), "AB")
    assert judge([*ratios(*[1.0] * 7), failed]).outcome is Outcome.SAME


def test_an_order_is_ab_or_ba() -> None:
    with pytest.raises(ValueError, match="order 'ABBA'"):
        Pair(run_of(), run_of(), "ABBA")

"""The gate as a library: the rule, pairing, refusals."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest

from attn_impls.problem import Direction, Problem
from pytest_attn.gate import STORED, NotComparable, Outcome, Thresholds, Verdict, common_shift, compare, exit_code
from pytest_attn.gate.thresholds import parse_relative
from pytest_attn.perf.record import Record
from tests.tool.gate_runs import LARGE, MACHINE, SMALL, record, run_of

MS = 1e-3
US = 1e-6


def judge(base: Record, head: Record, thresholds: Thresholds = STORED) -> Verdict:
    (verdict,) = compare(run_of(base), run_of(head), thresholds)
    return verdict


@pytest.mark.parametrize(
    ("base", "head", "outcome", "code"),
    [
        (1.0 * MS, 1.0 * MS, "same", "within"),
        (1.0 * MS, 1.049 * MS, "same", "within"),
        (1.0 * MS, 1.051 * MS, "slower", "clear"),
        (1.0 * MS, 3.0 * MS, "slower", "clear"),
        (1.049 * MS, 1.0 * MS, "same", "within"),
        (1.051 * MS, 1.0 * MS, "faster", "clear"),
        # 20 % but less than 2 us: below what an event can tell
        (9.0 * US, 10.8 * US, "same", "floor"),
        (10.8 * US, 9.0 * US, "same", "floor"),
        (9.0 * US, 11.2 * US, "slower", "clear"),
    ],
)
def test_a_clean_move_is_judged_by_share_and_floor(base: float, head: float, outcome: str, code: str) -> None:
    verdict = judge(record(base), record(head))
    assert (verdict.outcome, verdict.code) == (outcome, code)
    assert verdict.base == base
    assert verdict.head == head
    assert verdict.ratio == pytest.approx(head / base)


def test_a_move_inside_the_noise_of_either_side_is_unsure() -> None:
    assert judge(record(1 * MS, 0.01), record(1.2 * MS, 0.01)).outcome is Outcome.SLOWER
    for base_spread, head_spread in ((0.01, 0.2), (0.25, 0.01), (0.1, 0.1)):
        verdict = judge(record(1 * MS, base_spread), record(1.2 * MS, head_spread))
        assert (verdict.outcome, verdict.code) == (Outcome.UNSURE, "overlap")
        mirrored = judge(record(1.2 * MS, head_spread), record(1 * MS, base_spread))
        assert mirrored.outcome is Outcome.UNSURE


def test_ranges_that_only_touch_overlap() -> None:
    base, head = record(1.0, 0.25), record(2.0, 0.375)  # p90 of one is p10 of the other, exactly in binary
    assert base.time_s is not None
    assert head.time_s is not None
    assert base.time_s.p90 == head.time_s.p10
    assert judge(base, head).code == "overlap"


def test_few_rounds_have_no_spread_to_judge_by() -> None:
    assert judge(record(1 * MS, 0, rounds=5), record(2 * MS, 0, rounds=5)).outcome is Outcome.SLOWER
    for rounds in ((4, 50), (50, 4), (1, 1)):
        verdict = judge(record(1 * MS, 0, rounds=rounds[0]), record(2 * MS, 0, rounds=rounds[1]))
        assert (verdict.outcome, verdict.code) == (Outcome.UNSURE, "few-rounds")


def test_the_wall_clock_has_a_wider_floor() -> None:
    base, head = 50 * US, 65 * US
    assert judge(record(base), record(head)).outcome is Outcome.SLOWER
    wall = judge(record(base, contract="wall/1"), record(head, contract="wall/1"))
    assert (wall.outcome, wall.code) == (Outcome.SAME, "floor")


def test_the_threshold_is_a_parameter() -> None:
    base, head = record(1 * MS), record(1.1 * MS)
    assert judge(base, head, Thresholds(relative=0.05)).outcome is Outcome.SLOWER
    assert judge(base, head, Thresholds(relative=0.15)).outcome is Outcome.SAME
    assert judge(base, head, Thresholds(relative=0.15)).sentence == "moved less than 15 %"


@pytest.mark.parametrize("status", ["oom", "error", "unsupported", "host_bound", "noisy"])
def test_a_cell_that_the_head_cannot_measure_any_more_is_lost(status: str) -> None:
    failed = record(None, status=status, reason="asked for 3 GiB")
    base = run_of(record(1 * MS), record(1 * MS, problem=LARGE))
    common, lost = compare(base, run_of(failed, record(2 * MS, problem=LARGE)))
    assert common.outcome is Outcome.SLOWER
    assert (lost.outcome, lost.code, lost.lost) == (Outcome.NO_DATA, f"head-{status}", True)
    assert "asked for 3 GiB" in lost.sentence
    assert lost.base == 1 * MS
    assert lost.head is None


def test_a_time_whose_status_is_not_ok_is_not_compared() -> None:
    keep = record(1 * MS, problem=LARGE)
    verdicts = compare(run_of(record(1 * MS), keep), run_of(record(9 * MS, status="noisy"), keep))
    assert {v.code for v in verdicts} == {"head-noisy", "within"}
    assert verdicts[0].head is None


def test_vanished_and_new_cells_are_no_data_and_only_the_vanished_is_lost() -> None:
    keep = record(1 * MS, problem=LARGE)
    head = run_of(
        keep, record(1 * MS, impl="flex"), implementations={"naive": {"version": "1", "missing": "no compiler"}}
    )
    by_code = {v.code: v for v in compare(run_of(keep, record(1 * MS)), head)}
    assert by_code["gone"].lost
    assert "no compiler" in by_code["gone"].sentence
    assert not by_code["new"].lost
    assert by_code["new"].impl == "flex"
    assert exit_code(list(by_code.values())) == 0
    assert exit_code(list(by_code.values()), fail_on_lost=True) == 1


def test_a_cell_that_neither_side_measured_is_not_lost() -> None:
    keep, oom = record(1 * MS, problem=LARGE), record(None, status="oom")
    codes = [v.code for v in compare(run_of(keep, oom), run_of(keep, oom))]
    assert codes == ["both-oom", "within"]
    unlike = compare(run_of(keep, oom), run_of(keep, record(None, status="error", reason="boom")))
    assert (unlike[0].code, unlike[0].lost) == ("both-none", False)
    recovered = compare(run_of(keep, oom), run_of(keep, record(1 * MS)))
    assert (recovered[0].code, recovered[0].lost) == ("base-oom", False)
    vanished = compare(run_of(keep, oom), run_of(keep))
    assert (vanished[0].code, vanished[0].lost) == ("gone", False)


def test_a_cell_with_two_records_is_not_guessed_at() -> None:
    keep = record(1 * MS, problem=LARGE)
    twice = compare(run_of(keep, record(1 * MS)), run_of(keep, record(1 * MS), record(9 * MS)))
    assert (twice[0].code, twice[0].lost) == ("twice", False)
    gone = compare(run_of(keep, record(1 * MS), record(1 * MS)), run_of(keep))
    assert (gone[0].code, gone[0].lost) == ("twice", True)


def test_a_cell_under_two_contracts_of_one_run_is_not_compared() -> None:
    one, two = record(1 * MS), record(1 * MS, problem=LARGE, contract="wall/1")
    swapped = record(1 * MS, contract="wall/1"), record(1 * MS, problem=LARGE)
    other = record(1 * MS, impl="flex")
    verdicts = compare(run_of(one, two, other), run_of(*swapped, other))
    assert [v.code for v in verdicts] == ["contract", "contract", "within"]


def test_directions_and_implementations_are_cells_of_their_own() -> None:
    cells = [record(1 * MS, impl=impl, direction=d) for impl in ("naive", "flex") for d in Direction]
    slow = [record(2 * MS, impl=c.impl, direction=c.direction) if c.key[::2] == ("flex", "bwd") else c for c in cells]
    verdicts = compare(run_of(*cells), run_of(*slow))
    assert len(verdicts) == 6
    assert [(v.impl, v.direction) for v in verdicts if v.outcome is Outcome.SLOWER] == [("flex", "bwd")]


def test_the_worst_comes_first() -> None:
    def cell(impl: str, base: float | None, head: float | None, spread: float = 0.01) -> tuple[Record, Record]:
        def side(median: float | None) -> Record:
            return record(median, spread, impl=impl, status="ok" if median else "oom")

        return side(base), side(head)

    pairs = [
        cell("same", 1, 1),
        cell("faster", 2, 1),
        cell("neither", None, None),
        cell("unsure-little", 1, 1.1, 0.5),
        cell("unsure-much", 2, 1, 0.9),
        cell("lost", 1, None),
        cell("slower", 1, 2),
        cell("slowest", 1, 3),
    ]
    verdicts = compare(run_of(*(base for base, _ in pairs)), run_of(*(head for _, head in pairs)))
    expected = ["slowest", "slower", "lost", "unsure-much", "unsure-little", "neither", "faster", "same"]
    assert [v.impl for v in verdicts] == expected
    assert exit_code(verdicts) == 1
    assert exit_code([v for v in verdicts if not v.impl.startswith("slow")]) == 0


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (run_of(record(1), machine={**MACHINE, "device": "A100"}), ["machine", "H100", "A100"]),
        (run_of(record(1), machine={**MACHINE, "driver": "590.2"}), ["driver: 580.1 -> 590.2"]),
        (run_of(record(1), machine={"device": MACHINE["device"]}), ["driver: 580.1 -> None"]),
        (run_of(record(1), grid="lab5"), ["grid", "smoke", "lab5"]),
        (run_of(record(1, contract="events/2")), ["contract", "events/1 -> events/2"]),
        (run_of(record(1, contract="wall/1"), grid="lab5"), ["contract", " and grid"]),
        (run_of(), ["head holds no records"]),
        (run_of(record(None, status="error")), ["no record that is ok"]),
        (run_of(record(1, problem=LARGE)), ["no cell in common"]),
    ],
)
def test_unlike_runs_are_refused_with_what_differs(head: object, said: list[str]) -> None:
    with pytest.raises(NotComparable) as caught:
        compare(run_of(record(1)), head)  # type: ignore[arg-type]
    for words in said:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_torch_is_compared() -> None:
    assert compare(run_of(record(1)), run_of(record(1), environment={"torch": "3.0"}))[0].outcome is Outcome.SAME


def shifted(**ratios: list[float]) -> float | None:
    cells = [(impl, number, ratio) for impl, each in ratios.items() for number, ratio in enumerate(each)]
    base = run_of(*(record(1 * MS, impl=impl, problem=sized(number)) for impl, number, _ in cells))
    head = run_of(*(record(ratio * MS, impl=impl, problem=sized(number)) for impl, number, ratio in cells))
    return common_shift(compare(base, head))


def sized(number: int) -> Problem:
    return dataclasses.replace(SMALL, batch=number + 1)


def test_a_move_of_everything_alike_is_noticed() -> None:
    assert shifted(a=[1.3, 1.4, 1.0], b=[1.3, 1.2, 1.4]) == pytest.approx(1.3)
    assert shifted(a=[0.7, 0.7, 0.7], b=[0.8, 0.8, 0.8]) == pytest.approx(0.75)


def test_a_move_of_one_implementation_is_no_common_shift() -> None:
    assert shifted(a=[1.3, 1.3, 1.3, 1.3], b=[1.0, 1.0, 1.0]) is None
    assert shifted(a=[1.3, 1.3, 1.3], b=[0.7, 0.7, 0.7]) is None
    assert shifted(a=[1.3] * 8) is None, "one implementation alone says nothing of the machine"
    assert shifted(a=[1.3, 1.3], b=[1.3, 1.3]) is None, "too few cells"


def test_a_verdict_has_a_json_form() -> None:
    verdict = judge(record(1 * MS), record(2 * MS))
    assert verdict.to_dict() == {
        "impl": "naive",
        "problem_id": SMALL.id,
        "direction": "fwd",
        "metric": "time",
        "verdict": "slower",
        "code": "clear",
        "sentence": "moved more than 5 %, and p10-p90 are apart",
        "base": 1 * MS,
        "head": 2 * MS,
        "ratio": 2.0,
        "ratios": [],
        "lost": False,
        "threshold": 0.05,
    }


@pytest.mark.parametrize(
    ("text", "value"), [("5%", 0.05), (" 2.5 % ", 0.025), ("0.1", 0.1), ("0%", 0.0), ("150%", 1.5)]
)
def test_shares_are_read(text: str, value: float) -> None:
    assert parse_relative(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "1", "", "%", "five%", "-1%", "nan", "inf%", "5%%", "5 % or so"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a share such as 5% or"):
        parse_relative(text)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_thresholds_refuse_nonsense(value: float) -> None:
    with pytest.raises(ValueError, match="relative"):
        Thresholds(relative=value)


def test_the_gate_needs_neither_torch_nor_pytest() -> None:
    code = "import sys, pytest_attn.gate, pytest_attn.gate.terminal; print({'torch', 'pytest'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

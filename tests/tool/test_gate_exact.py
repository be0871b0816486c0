"""Exact metrics: memory, kernels, accuracy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pytest_attn.gate import Outcome, Pair, Thresholds, Verdict, compare, exit_code, judge_pairs, suspects
from pytest_attn.gate.thresholds import EXACT, Limit, Override
from pytest_attn.perf.record import Memory, Record
from tests.tool.gate_runs import SMALL, record, run_of

MIB = 1 << 20
KEY = ("naive", SMALL.id, "fwd")


def with_memory(peak: int, workspace: int = 0, saved: int | None = None) -> Record:
    return dataclasses.replace(record(1e-3), memory=Memory(peak, workspace, saved))


def with_kernels(*names: str, count: int = 1) -> Record:
    return dataclasses.replace(record(1e-3), kernels=tuple({"name": n, "share": 0.5, "count": count} for n in names))


def with_error(ratio: float) -> Record:
    return dataclasses.replace(record(1e-3), accuracy={"error_ratio": ratio})


def metrics(base: Record, head: Record, **changes: Any) -> dict[str, Verdict]:
    verdicts = compare(run_of(base), run_of(head), Thresholds(**changes))
    return {verdict.metric: verdict for verdict in verdicts if verdict.metric != "time"}


@pytest.mark.parametrize(
    ("base", "head", "outcome", "code"),
    [
        (100 * MIB, 100 * MIB, "same", "within"),
        (100 * MIB, 101 * MIB, "same", "within"),
        (100 * MIB, 102 * MIB, "slower", "grew"),
        (102 * MIB, 100 * MIB, "faster", "shrank"),
        # twice as much, but within the floor of 64 KiB
        (4096, 65536, "same", "within"),
        (0, 65537, "slower", "grew"),
        (0, 0, "same", "within"),
    ],
)
def test_memory_must_grow_beyond_share_and_floor(base: int, head: int, outcome: str, code: str) -> None:
    for field in ("peak_bytes", "workspace_bytes", "saved_bytes"):
        records = (
            dataclasses.replace(record(1e-3), memory=Memory(**{"peak_bytes": 0, "workspace_bytes": 0, field: value}))
            for value in (base, head)
        )
        verdict = metrics(*records)[field]
        assert (verdict.outcome, verdict.code) == (outcome, code)
        assert (verdict.base, verdict.head) == (base, head)


def test_more_memory_fails_though_the_time_is_the_same() -> None:
    verdicts = compare(run_of(with_memory(100 * MIB)), run_of(with_memory(200 * MIB)))
    assert exit_code(verdicts) == 1
    assert (verdicts[0].metric, verdicts[0].word, verdicts[0].ratio) == ("peak_bytes", "more", 2.0)
    assert suspects(verdicts) == [], "what is exact is not measured again"


def test_kernels_are_compared_by_name_and_number() -> None:
    same = metrics(with_kernels("a", "b"), with_kernels("b", "a"))
    assert {v.outcome for v in same.values()} == {Outcome.SAME}
    more = metrics(with_kernels("a"), with_kernels("a", count=3))
    assert (more["kernel_count"].code, more["kernel_names"].outcome) == ("grew", Outcome.SAME)
    assert (more["kernel_count"].base, more["kernel_count"].head) == (1, 3)
    other = metrics(with_kernels("a", "b"), with_kernels("a", "c"))["kernel_names"]
    assert (other.outcome, other.code) == (Outcome.UNSURE, "changed")
    assert other.sentence == "the kernels changed: without b; with c"
    fails = {**EXACT, "kernel_names": Limit(), "kernel_count": Limit()}
    strict = metrics(with_kernels("a"), with_kernels("b", "c"), metrics=fails)
    assert {v.outcome for v in strict.values()} == {Outcome.SLOWER}


def test_a_worse_error_fails() -> None:
    assert metrics(with_error(0.2), with_error(0.24))["error_ratio"].outcome is Outcome.SAME
    assert metrics(with_error(0.2), with_error(0.26))["error_ratio"].outcome is Outcome.SLOWER
    assert metrics(with_error(0.9), with_error(0.2))["error_ratio"].outcome is Outcome.FASTER


def test_a_metric_can_be_a_warning_or_off_for_a_pattern_of_cells() -> None:
    grown = with_memory(100 * MIB), with_memory(200 * MIB)
    warn = Override("naive *", metrics={"peak_bytes": {"action": "warn"}})
    off = Override("naive *", metrics={"peak_bytes": {"action": "off"}})
    verdict = metrics(*grown, cells=(warn,))["peak_bytes"]
    assert (verdict.outcome, verdict.code) == (Outcome.UNSURE, "grew")
    assert "peak_bytes" not in metrics(*grown, cells=(off,))
    assert metrics(*grown, cells=(Override("flex *", metrics=off.metrics),))["peak_bytes"].outcome is Outcome.SLOWER


def test_what_a_side_did_not_record_is_not_made_up() -> None:
    assert metrics(record(1e-3), with_memory(1 * MIB)) == {}
    missing = metrics(with_memory(1 * MIB), record(1e-3))
    assert {(v.outcome, v.code) for v in missing.values()} == {(Outcome.NO_DATA, "head-none")}
    assert set(missing) == {"peak_bytes", "workspace_bytes"}
    assert metrics(with_kernels("a"), record(1e-3))["kernel_count"].code == "head-none"


def test_over_several_processes_ranges_are_compared() -> None:
    def judged(base: list[int], head: list[int]) -> Verdict:
        pairs = [
            Pair(run_of(with_memory(old * MIB)), run_of(with_memory(new * MIB)), "AB")
            for old, new in zip(base, head, strict=True)
        ]
        (verdict,) = [v for v in judge_pairs(pairs, Thresholds()) if v.metric == "peak_bytes"]
        return verdict

    assert judged([100] * 7, [110] * 7).code == "grew"
    assert judged([100, 105] * 4, [110, 120] * 4).code == "grew"
    varies = judged([100, 120] * 4, [130, 110] * 4)
    assert (varies.outcome, varies.code) == (Outcome.UNSURE, "varies")
    assert "104857600 to 125829120" in varies.sentence
    assert judged([100, 120] * 4, [120, 100] * 4).outcome is Outcome.SAME


@pytest.mark.parametrize(
    ("sides", "outcome", "code"),
    [
        (["aa", "ba", "aa"], "same", "within"),
        (["aa", "ab", "aa"], "unsure", "varies"),
        (["ac", "bd", "ac"], "slower", "changed"),
    ],
)
def test_a_choice_of_kernels_that_the_base_makes_too_is_no_change(sides: list[str], outcome: str, code: str) -> None:
    pairs = [Pair(run_of(with_kernels(old)), run_of(with_kernels(new)), "AB") for old, new in sides]
    strict = Thresholds(metrics={**EXACT, "kernel_names": Limit()})
    (names,) = [v for v in judge_pairs(pairs, strict) if v.metric == "kernel_names"]
    assert (names.outcome, names.code) == (outcome, code)


@pytest.mark.parametrize(
    "odd",
    [
        {"accuracy": {"error_ratio": "small"}},
        {"accuracy": {"error_ratio": float("inf")}},
        {"kernels": ({"share": 1.0},)},
        {"kernels": ({"name": "a", "count": "many"},)},
        {"kernels": ()},
        {"telemetry": {"sm_mhz": "fast", "clock_reasons": 3, "foreign_processes": None}},
        {"telemetry": {"sm_mhz": 0, "clock_reasons": ["idle"], "foreign_processes": "none"}},
    ],
)
def test_what_does_not_fit_counts_as_not_known(odd: dict[str, Any]) -> None:
    strange = dataclasses.replace(record(1e-3), **odd)
    pairs = [Pair(run_of(strange), run_of(strange), "AB")] * 7
    for verdicts in (compare(run_of(strange), run_of(strange)), judge_pairs(pairs, Thresholds())):
        assert {v.outcome for v in verdicts} == {Outcome.SAME}
        assert {v.metric for v in verdicts} <= {"time", "kernel_names"}

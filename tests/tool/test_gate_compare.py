"""Two stored runs: what may differ when it is allowed, and the control."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_attn.gate import NotComparable, Outcome, Thresholds, Verdict, compare, exit_code
from pytest_attn.gate.thresholds import Override
from pytest_attn.perf.record import Run
from tests.tool.gate_runs import LARGE, MACHINE, SMALL, record, run_of

MS = 1e-3
BASE = run_of(record(1 * MS))
UNLIKE = {
    "machine": run_of(record(2 * MS), machine={**MACHINE, "device": "A100"}),
    "driver": run_of(record(2 * MS), machine={**MACHINE, "driver": "590.2"}),
    "contract": run_of(record(2 * MS, contract="events/2")),
    "grid": run_of(record(2 * MS), grid="lab5"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_each_difference_is_allowed_by_its_own_name(name: str) -> None:
    for allow in (set(), set(UNLIKE) - {name}):
        with pytest.raises(NotComparable, match=f"differ in {name} ") as caught:
            compare(BASE, UNLIKE[name], allow=allow)
        assert caught.value.names == (name,)
    (verdict,) = compare(BASE, UNLIKE[name], allow={name})
    assert verdict.outcome is Outcome.SLOWER


def test_every_difference_that_is_not_allowed_is_named() -> None:
    other = run_of(record(2 * MS), machine={**MACHINE, "device": "A100", "driver": "590.2"}, grid="lab5")
    with pytest.raises(NotComparable) as caught:
        compare(BASE, other, allow={"grid"})
    assert caught.value.names == ("machine", "driver")
    with pytest.raises(NotComparable) as caught:
        compare(BASE, run_of(), allow=set(UNLIKE))
    assert caught.value.names == (), "no option helps a run without records"


def test_a_cell_that_another_grid_does_not_have_is_not_lost() -> None:
    base = run_of(record(1 * MS), record(1 * MS, problem=LARGE))
    for grid, lost in (("smoke", True), ("lab5", False)):
        verdicts = compare(base, run_of(record(1 * MS), grid=grid), allow={"grid"})
        (gone,) = [verdict for verdict in verdicts if verdict.code == "gone"]
        assert gone.lost is lost
        assert exit_code(verdicts, True) == lost


def test_an_implementation_that_took_its_contract_with_it_is_lost_and_no_reason_to_refuse() -> None:
    base = run_of(record(1 * MS), record(1 * MS, impl="flex", contract="events/1-isolated"))
    lost, same = compare(base, BASE)
    assert (lost.impl, lost.code, lost.lost) == ("flex", "gone", True)
    assert same.outcome is Outcome.SAME


def with_control(naive: float, sdpa: float) -> Run:
    return run_of(record(naive * MS), record(sdpa * 2 * MS, impl="sdpa"))


@pytest.mark.parametrize(
    ("naive", "sdpa", "outcome"),
    [(1.3, 1.3, "same"), (1.3, 1.0, "slower"), (1.0, 0.8, "slower"), (1.0, 1.2, "faster"), (1.3, 1.27, "same")],
)
def test_the_control_takes_out_what_moved_both(naive: float, sdpa: float, outcome: str) -> None:
    verdicts = {v.impl: v for v in compare(with_control(1, 1), with_control(naive, sdpa), control="sdpa")}
    assert verdicts["naive"].outcome == outcome
    assert verdicts["naive"].ratio == pytest.approx(naive / sdpa)
    assert verdicts["sdpa"].ratio == pytest.approx(sdpa), "the control itself is judged as it is"


def test_the_noise_is_divided_with_the_time() -> None:
    def run(naive: float, sdpa: float) -> Run:
        return run_of(record(naive * MS, 0.05), record(sdpa * MS, impl="sdpa"))

    verdicts = {v.impl: v for v in compare(run(1, 1), run(2.2, 2), control="sdpa")}
    assert (verdicts["naive"].code, verdicts["naive"].ratio) == ("overlap", pytest.approx(1.1))


def test_without_a_control_there_is_nothing_to_judge_by() -> None:
    with pytest.raises(NotComparable, match="the control sdpa has no cell that is ok in both runs"):
        compare(BASE, BASE, control="sdpa")
    partly = run_of(record(1 * MS), record(1 * MS, problem=LARGE), record(1 * MS, impl="sdpa", problem=LARGE))
    by_cell = {v.key: v for v in compare(partly, partly, control="sdpa")}
    assert by_cell["naive", SMALL.id, "fwd"].code == "no-control"
    assert by_cell["naive", LARGE.id, "fwd"].outcome is Outcome.SAME


def test_a_pattern_of_cells_has_its_own_share() -> None:
    thresholds = Thresholds(relative=0.05, cells=(Override("naive *", {"relative": 0.5}),))
    both = run_of(record(1 * MS), record(1 * MS, impl="flex"))
    slow = run_of(record(1.3 * MS), record(1.3 * MS, impl="flex"))
    assert {v.impl: v.outcome.value for v in compare(both, slow, thresholds)} == {"naive": "same", "flex": "slower"}


def test_a_clock_or_a_disturbed_device_that_may_explain_a_movement_makes_it_unsure() -> None:
    def judged(ratio: float, mhz: float, **changes: object) -> Verdict:
        base, head = (
            dataclasses.replace(record(median), telemetry={"sm_mhz": clock, **seen})
            for median, clock, seen in ((1 * MS, 1980.0, {}), (ratio * MS, mhz, changes))
        )
        (verdict,) = compare(run_of(base), run_of(head))
        return verdict

    assert judged(1.1, 1980).code == "clear"
    assert judged(1.1, 1850).code == "clock"
    assert judged(1 / 1.1, 2120).code == "clock"
    assert judged(1.1, 1950).code == "clear", "1.5 % of the clock is within the tolerance"
    assert judged(1.2, 1850).code == "clear", "12 % more cycles are left"
    assert judged(1.1, 2120).code == "clear", "a higher clock explains no slowdown"
    assert judged(1.1, 1980, clock_reasons=["hardware power brake"]).code == "throttle"
    assert judged(1.1, 1980, foreign_processes=2).outcome is Outcome.UNSURE
    assert judged(1.0, 1980, foreign_processes=2).outcome is Outcome.SAME

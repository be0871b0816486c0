"""Implementations of one problem are measured together: what they share, and that none of them harms another."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cpuinfo
import pytest
import torch

from attn_impls import Capabilities, Direction, Implementation, Problem, Unavailable
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL
from pytest_attn.correctness import case
from pytest_attn.perf import inputs
from pytest_attn.perf import measure as measuring
from pytest_attn.perf.measure import Measured, measure_group
from pytest_attn.perf.record import load_run
from tests.tool.nested import ROOT, lay_out, run
from tests.tool.nested import torch_is_whole as torch_is_whole
from tests.tool.quick import instruments

pytest_plugins = ["pytester"]

SMALL = Problem(1, 2, 2, 16, 16, 8, "fp32", CAUSAL)
FULL_ID, CAUSAL_ID = "b1-h2-kv2-q16-k16-d8-fp32-full", "b1-h2-kv2-q16-k16-d8-fp32-causal"

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Problem], Any]


def right(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    result: torch.Tensor = naive(q, k, v, problem)
    return result


def group(direction: Direction = Direction.FWD, **members: Attention) -> dict[str, Measured | Unavailable | None]:
    impls = [Implementation(name, fn) for name, fn in members.items()]
    outcomes = measure_group(impls, SMALL, direction, instruments())
    assert len(outcomes) == len(impls)
    return dict(zip(members, outcomes, strict=True))


def statuses(outcomes: dict[str, Measured | Unavailable | None]) -> dict[str, tuple[str, str | None]]:
    return {
        name: (outcome.record.status, outcome.record.reason)
        for name, outcome in outcomes.items()
        if isinstance(outcome, Measured)
    }


def spy(seen: list[tuple[int, torch.Tensor]]) -> Attention:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        seen.append((q.data_ptr(), q.detach().clone()))
        return right(q, k, v, problem)

    return attention


def test_they_share_one_input_in_memory() -> None:
    one: list[tuple[int, torch.Tensor]] = []
    two: list[tuple[int, torch.Tensor]] = []
    group(one=spy(one), two=spy(two))
    assert len({pointer for pointer, _ in one + two}) == 1
    before = [values for _, values in one[:2] + two[:2]]
    assert all(torch.equal(values, before[0]) for values in before)


def test_the_last_call_sees_other_values_in_the_same_place() -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    group(one=spy(seen))
    (first, values), (last, others) = seen[0], seen[-1]
    assert first == last
    assert not torch.equal(values, others)


def remembers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    key = (q.data_ptr(), problem)
    if key not in MEMORY:
        MEMORY[key] = right(q, k, v, problem)
    return MEMORY[key]


MEMORY: dict[tuple[int, Problem], torch.Tensor] = {}


def after(calls: int, then: Callable[[torch.Tensor], object]) -> Attention:
    count = 0

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        nonlocal count
        count += 1
        if count > calls:
            done = then(q)
            if isinstance(done, torch.Tensor):
                return done
        return right(q, k, v, problem)

    return attention


def test_a_result_that_is_remembered_is_no_number() -> None:
    MEMORY.clear()
    ((status, reason),) = statuses(group(remembers=remembers)).values()
    assert status == "error"
    assert str(reason).startswith("wrong result after the timing, on other inputs: the error is ")


def test_a_call_that_does_less_once_it_was_checked_is_no_number() -> None:
    ((status, reason),) = statuses(group(lazy=after(2, torch.zeros_like))).values()
    assert status == "error"
    assert "after the timing" in str(reason)


# Two calls are to check, and at most seven more to warm up.
@pytest.mark.parametrize("calls", [2, 9], ids=["in the warm-up", "in the rounds"])
def test_who_changes_an_input_later_is_blamed_alone(calls: int) -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    found = statuses(group(before=right, changer=after(calls, lambda q: [q.zero_()]), behind=spy(seen)))
    assert found == {"before": ("ok", None), "changer": ("error", "it changed its input q"), "behind": ("ok", None)}
    assert all(values.any() for _, values in seen), "nobody is timed on what was left"


def test_who_changes_an_input_when_traced_is_blamed_alone() -> None:
    traced = after(0, lambda q: [q.zero_()] if torch.autograd._profiler_enabled() else None)
    found = statuses(group(before=right, changer=traced, behind=right))
    assert found == {"before": ("ok", None), "changer": ("error", "it changed its input q"), "behind": ("ok", None)}


def test_who_is_wrong_after_the_timing_leaves_the_others_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    checking: list[None] = []
    again = measuring.check_again

    def noted(*arguments: Any) -> None:
        checking.append(None)
        again(*arguments)

    monkeypatch.setattr(measuring, "check_again", noted)
    late = after(0, lambda q: [q.zero_()] if checking else None)
    found = statuses(group(changer=late, behind=right))
    assert found == {"changer": ("error", "it changed its input q"), "behind": ("ok", None)}


@pytest.mark.parametrize("calls", [2, 9], ids=["in the warm-up", "in the rounds"])
def test_who_changes_torchs_settings_later_is_blamed_alone(calls: int) -> None:
    threads, seen = torch.get_num_threads(), set()

    def watching(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return right(q, k, v, problem)

    greedy = after(calls, lambda q: torch.set_num_threads(threads + 1))
    found = statuses(group(before=watching, greedy=greedy, behind=watching))
    assert found.pop("greedy") == ("error", f"it changed torch's number of threads from {threads} to {threads + 1}")
    assert found == {"before": ("ok", None), "behind": ("ok", None)}
    assert seen == {threads}
    assert torch.get_num_threads() == threads


def test_one_that_fails_with_changed_settings_and_inputs_leaves_the_others_theirs() -> None:
    threads = torch.get_num_threads()

    def leave(q: torch.Tensor) -> object:
        torch.set_num_threads(threads + 1)
        q.zero_()
        raise RuntimeError("kernel exploded")

    found = statuses(group(before=right, careless=after(9, leave), behind=right))
    assert found.pop("careless") == ("error", "RuntimeError: kernel exploded")
    assert found == {"before": ("ok", None), "behind": ("ok", None)}
    assert torch.get_num_threads() == threads


def test_torchs_settings_are_put_back_and_the_change_is_an_error() -> None:
    threads = torch.get_num_threads()
    found = statuses(group(greedy=after(0, lambda q: torch.set_num_threads(threads + 1)), neighbour=right))
    assert found["greedy"] == ("error", f"it changed torch's number of threads from {threads} to {threads + 1}")
    assert found["neighbour"] == ("ok", None)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("error", [SystemExit(3), pytest.skip.Exception("not today")], ids=["exit", "skip"])
@pytest.mark.parametrize("calls", [0, 2], ids=["at once", "in the rounds"])
def test_what_ends_a_program_ends_one_implementation(error: BaseException, calls: int) -> None:
    def leave(q: torch.Tensor) -> object:
        raise error

    found = statuses(group(leaves=after(calls, leave), stays=right))
    assert found["leaves"][0] == "error"
    assert found["stays"] == ("ok", None)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), pytest.exit.Exception("stop")], ids=["ctrl-c", "exit"])
def test_what_ends_the_run_ends_the_run(error: BaseException) -> None:
    def leave(q: torch.Tensor) -> object:
        raise error

    with pytest.raises(type(error)):
        group(leaves=after(2, leave), stays=right)


@pytest.mark.parametrize("calls", [0, 3, 6], ids=["in the check", "in the rounds", "after them"])
def test_a_lost_device_blames_who_lost_it_and_keeps_what_was_done(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    lost: list[str] = []

    def lose(q: torch.Tensor) -> object:
        lost.append("an illegal memory access was encountered")
        raise RuntimeError(lost[0])

    def sticky(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        if lost:
            raise RuntimeError(lost[0])  # every later call fails with the same error
        return right(q, k, v, problem)

    monkeypatch.setattr(measuring, "lost_device", lambda device: lost[0] if lost else None)
    outcomes = group(before=sticky, culprit=after(calls, lose), behind=sticky)
    assert statuses(outcomes)["culprit"] == ("error", "RuntimeError: an illegal memory access was encountered")
    others = {name: status for name, (status, _) in statuses(outcomes).items() if name != "culprit"}
    assert "error" not in others.values(), "nobody else is blamed"
    assert outcomes["behind"] is None


def test_one_that_failed_before_is_not_blamed_for_a_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []

    def fail(q: torch.Tensor) -> object:
        raise RuntimeError("kernel exploded")

    def lose(q: torch.Tensor) -> object:
        lost.append("an illegal memory access was encountered")
        raise RuntimeError(lost[0])

    monkeypatch.setattr(measuring, "lost_device", lambda device: lost[0] if lost else None)
    outcomes = group(wrong=after(0, fail), failed=after(2, fail), culprit=after(3, lose), behind=right)
    found = {name: outcome.lost_device for name, outcome in outcomes.items() if isinstance(outcome, Measured)}
    assert found == {"wrong": False, "culprit": True}
    assert statuses(outcomes)["culprit"] == ("error", "RuntimeError: an illegal memory access was encountered")


def test_inputs_are_drawn_anew_for_each_group_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    make = case.make_tensors

    def counted(*arguments: Any, **options: Any) -> Any:
        tensors = make(*arguments, **options)
        drawn.append(tensors.q)
        return tensors

    monkeypatch.setattr(inputs, "make_tensors", counted)
    for direction in Direction:
        group(direction, one=right, two=right)
    assert len(drawn) == 3
    assert torch.equal(drawn[0], drawn[1]), "both after the renewal, which is the same each time, too"


def test_each_has_its_own_rounds() -> None:
    outcomes = group(one=right, two=right)
    for name, outcome in outcomes.items():
        assert isinstance(outcome, Measured)
        assert (outcome.record.impl, outcome.record.status) == (name, "ok")
        assert outcome.record.time_s is not None
        assert outcome.record.time_s.n == len(outcome.durations) == 3


@pytest.mark.parametrize("after", [0, 2, 3], ids=["at once", "in the warm-up", "later"])
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RuntimeError("kernel exploded"), ("error", "RuntimeError: kernel exploded")),
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), ("oom", "out of memory: asked for 2.00 GiB")),
    ],
    ids=["error", "oom"],
)
def test_one_that_raises_does_not_stop_the_others(error: Exception, outcome: tuple[str, str], after: int) -> None:
    calls: list[None] = []

    def raising(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        calls.append(None)
        if len(calls) > after:
            raise error
        return right(q, k, v, problem)

    found = statuses(group(before=right, raising=raising, behind=right))
    assert found == {"before": ("ok", None), "raising": outcome, "behind": ("ok", None)}
    assert len(calls) == after + 1  # it is not tried again


@pytest.mark.parametrize(("name", "index"), [("q", 0), ("k", 1), ("v", 2)])
def test_the_next_one_sees_the_input_as_it_was(name: str, index: int) -> None:
    before: list[tuple[int, torch.Tensor]] = []
    behind: list[tuple[int, torch.Tensor]] = []

    def changing(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        out = right(q, k, v, problem)
        (q, k, v)[index].zero_()
        return out

    found = statuses(group(before=spy(before), changing=changing, behind=spy(behind)))
    assert found == {
        "before": ("ok", None),
        "changing": ("error", f"it changed its input {name}"),
        "behind": ("ok", None),
    }
    assert torch.equal(before[0][1], behind[0][1])


def test_one_that_changes_an_input_and_raises_leaves_it_as_it_was() -> None:
    before: list[tuple[int, torch.Tensor]] = []
    behind: list[tuple[int, torch.Tensor]] = []

    def careless(q: torch.Tensor, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        q.zero_()
        raise RuntimeError("kernel exploded")

    found = statuses(group(before=spy(before), careless=careless, behind=spy(behind)))
    assert found["behind"] == ("ok", None)
    assert torch.equal(before[0][1], behind[0][1])


def test_one_that_finds_that_it_cannot_run_is_returned() -> None:
    reason = Unavailable("no compiler")

    def missing(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        raise reason

    outcomes = group(missing=missing, behind=right)
    assert outcomes["missing"] is reason
    assert statuses(outcomes) == {"behind": ("ok", None)}


def test_what_is_not_claimed_is_not_called() -> None:
    def never(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        raise AssertionError("called")

    half_only = Implementation("half-only", never, Capabilities(dtypes=frozenset({"bf16"})))
    narrow, one = measure_group([half_only, Implementation("one", right)], SMALL, Direction.FWD, instruments())
    assert isinstance(narrow, Measured)
    assert (narrow.record.status, narrow.record.reason) == ("unsupported", "does not take fp32")
    assert isinstance(one, Measured)
    assert one.record.status == "ok"


def test_nothing_to_measure_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "make_tensors", lambda *arguments, **options: pytest.fail("drawn"))
    half_only = Implementation("half-only", right, Capabilities(dtypes=frozenset({"bf16"})))
    (outcome,) = measure_group([half_only], SMALL, Direction.FWD, instruments())
    assert isinstance(outcome, Measured)
    assert outcome.record.status == "unsupported"
    assert measure_group([], SMALL, Direction.FWD, instruments()) == []


LOGGED = """
import time
from mykernels import right

def _logged(letter, seconds):
    def attention(q, k, v, causal=False):
        with open("calls.txt", "a") as log:
            log.write(letter)
        time.sleep(seconds)
        return right(q, k, v, causal)
    return attention

a, b = _logged("a", 0.011), _logged("b", 0.022)
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)  # pytest-benchmark's takes a second a run
    lay_out(pytester, "perf")
    (pytester.path / "logged.py").write_text(LOGGED)
    return pytester.path


def timed(pytester: pytest.Pytester, *options: str, impls: Sequence[str] = ("logged:a", "logged:b")) -> Any:
    chosen = [f"--attn-impl={name}" for name in impls]
    grid = ["-m", "perf", "--attn-device=cpu", "--attn-grid=tiny.toml", "--attn-direction=fwd"]
    return run(pytester, *grid, *chosen, "--benchmark-json=run.json", *options)


def calls(folder: Path) -> str:
    return (folder / "calls.txt").read_text()


# A comparison asks for the machine before the tests are known; here it finds nothing to compare with.
@pytest.mark.filterwarnings("ignore:Can't compare")
@pytest.mark.parametrize("more", [[], ["--benchmark-compare"]], ids=["alone", "compared"])
def test_rounds_take_turns_and_land_in_each_tests_own_row(
    pytester: pytest.Pytester, folder: Path, more: list[str]
) -> None:
    timed(pytester, "-k", "full", *more).assert_outcomes(passed=2)
    # Two calls each to check and two for each batch of the warm-up, then turns until both have their rounds. A wall
    # clock's batch begins with a call that does not count.
    checked, turns = calls(folder)[:4], calls(folder)[4:]
    assert checked == "aabb"
    runs = [match.group() for match in re.finditer(r"a+|b+", turns)]
    assert len(runs) >= 5, f"no turns were taken: {calls(folder)}"
    medians = {record.impl: record.time_s.median for record in load_run(folder / "run.json").records if record.time_s}
    assert set(medians) == {"logged:a", "logged:b"}
    # What sleeps never wakes early: a busy machine may make either of them longer, and none shorter.
    assert medians["logged:a"] >= 0.011
    assert medians["logged:b"] >= 0.022


def test_a_group_is_measured_when_its_first_test_runs(pytester: pytest.Pytester, folder: Path) -> None:
    assert timed(pytester, "--exitfirst", impls=("mykernels:raising", "logged:b")).ret == 1
    outcomes = {(r.impl, r.problem.id): r.status for r in load_run(folder / "run.json").records}
    assert outcomes == {("mykernels:raising", FULL_ID): "error"}
    assert "b" in calls(folder)


def test_what_k_deselects_takes_no_turn(pytester: pytest.Pytester, folder: Path) -> None:
    timed(pytester, "-k", "logged:b").assert_outcomes(passed=2, deselected=2)
    assert set(calls(folder)) == {"b"}
    assert {r.key for r in load_run(folder / "run.json").records} == {
        ("logged:b", FULL_ID, "fwd"),
        ("logged:b", CAUSAL_ID, "fwd"),
    }


def test_a_cell_that_is_asked_for_twice_is_measured_twice(pytester: pytest.Pytester, folder: Path) -> None:
    (folder / "test_again.py").write_text((folder / "test_perf.py").read_text())
    timed(pytester, "-k", "full", impls=("logged:a",)).assert_outcomes(passed=2)
    first, *others = load_run(folder / "run.json").records
    assert len(others) == 1
    assert first.key == others[0].key
    assert first.time_s != others[0].time_s


def test_a_test_with_a_problem_of_its_own_is_measured_alone(pytester: pytest.Pytester, folder: Path) -> None:
    (folder / "test_own.py").write_text(
        """
import pytest
from attn_impls import Direction, Problem

@pytest.mark.perf
def test_own(attn_impl, attn_bench):
    attn_bench(attn_impl, Problem(1, 1, 1, 8, 8, 8, "fp32"), Direction.FWD)
"""
    )
    timed(pytester, "-k", "own").assert_outcomes(passed=2, deselected=4)
    assert re.fullmatch("a+b+|b+a+", calls(folder))

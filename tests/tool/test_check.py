"""The calls before and after the timing: what they are given, what of them counts, and that a round keeps no graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from attn_impls import as_implementation
from attn_impls.naive import naive
from attn_impls.problem import FULL, Direction, Problem
from pytest_attn.correctness.case import Case, make_tensors
from pytest_attn.correctness.running import WrongOutput
from pytest_attn.perf import check
from pytest_attn.perf.check import WrongResult
from pytest_attn.perf.inputs import Inputs
from pytest_attn.perf.passes import memory_of, timed_round
from tests.tool.fake_cuda import Cuda, Host
from tests.tool.fake_cuda import cuda as cuda
from tests.tool.fake_cuda import host as host
from tests.tool.quick import CPU

PROBLEM = Problem(1, 2, 2, 16, 16, 8, "fp32", FULL)
CUDA = torch.device("cuda")


def test_what_a_call_leaves_unwritten_is_not_what_an_earlier_one_left_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator that hands out the block freed last, as CUDA's does: without poison that is the earlier result."""
    freed: list[torch.Tensor] = []
    real = torch.full_like

    def full_like(tensor: torch.Tensor, value: float) -> torch.Tensor:
        freed.append(real(tensor, value))
        return freed[-1]

    def attention(q: Any, k: Any, v: Any, problem: Problem, *, written: int) -> torch.Tensor:
        out = freed.pop() if freed else torch.empty_like(q)
        rows = slice(0, written if calls else None)
        calls.append(None)
        out[:, :, rows] = naive(q, k, v, problem)[:, :, rows]
        freed.append(out)
        return out

    monkeypatch.setattr(torch, "full_like", full_like)
    for written in (16, 15):
        calls: list[None] = []
        freed.clear()
        impl = as_implementation(
            lambda q, k, v, problem, written=written: attention(q, k, v, problem, written=written), "mine"
        )
        inputs = Inputs(PROBLEM, CPU)
        if written == 16:
            assert check.check(impl, PROBLEM, inputs, Direction.FWD, CPU).error_ratio is not None
        else:
            with pytest.raises(WrongResult, match=r"^wrong result: out is not finite$"):
                check.check(impl, PROBLEM, inputs, Direction.FWD, CPU)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_one_value_that_is_not_finite_is_found_and_large_ones_are_finite(value: float) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        large = torch.full((64, 64), torch.finfo(dtype).max, dtype=dtype)
        assert check._not_finite({"out": large, "dq": -large, "dk": large[:0]}) is None
        spoiled = large.clone()
        spoiled[17, 3] = value
        assert check._not_finite({"out": large, "dq": spoiled.t(), "dk": spoiled}) == "dq"
        spoiled[18, 3] = -value
        assert check._not_finite({"out": large, "dq": spoiled}) == "dq"
    assert check._not_finite({"out": large[:0]}) is None


def test_to_look_for_what_is_not_finite_takes_no_memory() -> None:
    out = torch.ones(2, 64, 8, 64, dtype=torch.bfloat16).transpose(1, 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        check._not_finite({"out": out})
    events = profiler.profiler.kineto_results.events() if profiler.profiler else []
    taken = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    assert taken, "the profiler saw no allocation at all"
    assert sum(taken) < out.nbytes // 8


def counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    worked_out: list[None] = []
    real = check.standard

    def standard(*arguments: Any, **keywords: Any) -> Any:
        worked_out.append(None)
        return real(*arguments, **keywords)

    monkeypatch.setattr(check, "standard", standard)
    return worked_out


def test_the_truth_is_worked_out_once_for_all_who_share_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out, inputs, impl = counted(monkeypatch), Inputs(PROBLEM, CPU), as_implementation(naive, "mine")
    first = check.check(impl, PROBLEM, inputs, Direction.FWD, CPU)
    assert check.check(impl, PROBLEM, inputs, Direction.FWD, CPU).error_ratio == first.error_ratio
    assert len(worked_out) == 1
    check.check(impl, PROBLEM, inputs, Direction.BWD, CPU)
    assert len(worked_out) == 2, "the gradients are not in the first one"
    inputs.renew(seed=1)
    check.check_again(impl, PROBLEM, inputs, Direction.FWD, CPU, None)
    assert len(worked_out) == 3


@pytest.mark.parametrize("spoiled", ["input", "setting", "result"])
def test_a_truth_worked_out_while_one_call_had_its_way_is_not_kept(spoiled: str) -> None:
    """Else who changes an input, or what naive computes in, sets the standard for the next one."""

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> Any:
        if spoiled == "input":
            v.mul_(2)
        if spoiled != "input":
            torch.set_float32_matmul_precision("medium")
        return naive(q, k, v, problem) * (2 if spoiled == "result" else 1)

    inputs = Inputs(PROBLEM, CPU)
    with pytest.raises((WrongOutput, WrongResult)):
        check.check(as_implementation(attention, "mine"), PROBLEM, inputs, Direction.FWD, CPU)
    assert not inputs.standards


def test_a_truth_is_not_kept_of_a_call_that_raised() -> None:
    inputs = Inputs(PROBLEM, CPU)
    check.check(as_implementation(naive, "mine"), PROBLEM, inputs, Direction.FWD, CPU)
    assert inputs.standards
    with pytest.raises(ZeroDivisionError), check.left_alone(inputs):
        raise ZeroDivisionError
    assert not inputs.standards


def test_compilation_is_what_the_device_took_more_for_the_first_call(
    host: Host, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((50.0, 20.0))
    poison = check.poison

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        cuda.submit(next(seconds))
        result: torch.Tensor = naive(q, k, v, problem)
        return result

    def slow_poison(tensors: Any) -> None:
        cuda.submit(7.0)
        poison(tensors)

    monkeypatch.setattr(check, "time", SimpleNamespace(perf_counter=lambda: host.now))
    monkeypatch.setattr(check, "poison", slow_poison)
    cuda.submit(11.0)  # what ran before
    impl = as_implementation(attention, "mine")
    checked = check.check(impl, PROBLEM, Inputs(PROBLEM, CPU), Direction.FWD, CUDA)
    assert checked.compile_s == pytest.approx(50 - 20)


@pytest.mark.parametrize("direction", [Direction.BWD, Direction.FWD_BWD])
@pytest.mark.parametrize("kind", ["timed", "memory"])
def test_no_graph_is_retained(direction: Direction, kind: str) -> None:
    """A backward pass that keeps its graph keeps what it needs alive; another pass through it must not be possible."""
    graphs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        out: torch.Tensor = naive(q, k, v, problem)
        graphs.append((out, q))
        return out

    impl, tensors = as_implementation(attention, "mine"), make_tensors(Case(PROBLEM), CPU)
    if kind == "timed":
        for _ in range(2):
            timed_round(impl, PROBLEM, tensors, direction)()()
    else:
        memory_of(impl, PROBLEM, tensors, direction, CPU, 0)
    assert len(graphs) == (2 if kind == "timed" else 1)
    for out, q in graphs:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(out, q, tensors.dout)


def test_other_values_have_another_truth() -> None:
    inputs, impl = Inputs(PROBLEM, CPU), as_implementation(naive, "mine")
    check.check(impl, PROBLEM, inputs, Direction.FWD, CPU)
    assert inputs.standards
    inputs.renew(seed=1)
    assert not inputs.standards


def test_a_truth_that_takes_much_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, impl = Inputs(PROBLEM, CPU), as_implementation(naive, "mine")
    monkeypatch.setattr(check, "_MOST_KEPT_BYTES", 4 * 16 * 8 * 8)  # of one head, four like out
    assert check.check(impl, PROBLEM, inputs, Direction.FWD, CPU).error_ratio is not None
    assert not inputs.standards


def test_forward_is_called_without_a_graph_where_its_memory_is_taken() -> None:
    modes: list[bool] = []

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> Any:
        modes.append(torch.is_grad_enabled())
        return naive(q, k, v, problem)

    tensors = make_tensors(Case(PROBLEM), CPU)
    for direction in (Direction.FWD, Direction.BWD):
        memory, results = memory_of(as_implementation(attention, "mine"), PROBLEM, tensors, direction, CPU, 0)
        assert (memory.saved_bytes is None) == (direction is Direction.FWD)
        assert set(results) == ({"out"} if direction is Direction.FWD else {"out", "dq", "dk", "dv"})
    assert modes == [False, True]

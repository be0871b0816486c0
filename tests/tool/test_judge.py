"""Running an implementation: what cannot be compared, what is raised, what is left unwritten."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attn_impls import Capabilities, Implementation, Unavailable, as_implementation
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, FULL, Direction, Problem
from pytest_attn.correctness.budget import TensorVerdict
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.judge import Verdict, judge
from pytest_attn.correctness.running import NotDifferentiable
from pytest_attn.correctness.standard import host_or_device

CPU = torch.device("cpu")
PROBLEM = Problem(1, 2, 2, 33, 33, 16, "fp32", CAUSAL)


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    out: torch.Tensor = naive(q, k, v, problem)
    return out


def verdict(fn: Callable[..., Any], problem: Problem = PROBLEM, direction: Direction = Direction.FWD) -> Verdict:
    return judge(as_implementation(fn, "mine"), Case(problem), direction, CPU)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (lambda out: None, "the output is None, not a tensor"),
        (lambda out: (out, out), "the output is a tuple, not a tensor"),
        (lambda out: out[..., :-1], "the output has shape (1, 2, 33, 15), not (1, 2, 33, 16)"),
        (lambda out: out.transpose(1, 2), "the output has shape (1, 33, 2, 16), not (1, 2, 33, 16)"),
        (lambda out: out.double(), "the output has dtype torch.float64, not torch.float32"),
        (lambda out: out.to("meta"), "the output has device meta, not cpu"),
    ],
    ids=["none", "tuple", "short", "bshd", "dtype", "device"],
)
def test_what_cannot_be_compared(returned: Callable[[torch.Tensor], object], sentence: str) -> None:
    for direction in (Direction.FWD, Direction.BWD):
        result = verdict(lambda q, k, v, problem: returned(exact(q, k, v, problem)), direction=direction)
        assert (result.ok, result.broken, result.ratio) == (False, sentence, math.inf)
        assert sentence in result.explain()


def test_lse_of_the_wrong_form() -> None:
    def claims(returned: Callable[[Any, Any], object]) -> str | None:
        def attention(q: Any, k: Any, v: Any, problem: Problem, return_lse: bool = False) -> Any:
            out, lse = naive(q, k, v, problem, return_lse=True)
            return returned(out, lse) if return_lse else out

        mine = Implementation("mine", attention, Capabilities(returns_lse=True))
        return judge(mine, Case(PROBLEM), Direction.FWD, CPU).broken

    assert claims(lambda out, lse: out) == "mine claims returns_lse and returned a Tensor, not (out, lse)"
    assert claims(lambda out, lse: (out, lse.double())) == "lse has dtype torch.float64, not torch.float32"
    assert claims(lambda out, lse: (out, lse.mT)) == "lse has shape (1, 33, 2), not (1, 2, 33)"
    assert claims(lambda out, lse: (out, None)) == "lse is None, not a tensor"


def test_what_is_raised_is_a_verdict() -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        warnings.warn("tile too small", stacklevel=1)
        raise RuntimeError("kernel exploded")

    result = verdict(attention)
    assert result.broken == "raised RuntimeError: kernel exploded\n  warned: tile too small"
    assert isinstance(result.raised, RuntimeError)
    assert not result.ok


def test_a_warning_alone_is_no_failure() -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        warnings.warn("slow path", stacklevel=1)
        return exact(q, k, v, problem)

    assert verdict(attention).ok


def test_unavailable_passes_through() -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        raise Unavailable("no compiler")

    with pytest.raises(Unavailable, match="no compiler"):
        verdict(attention)


def test_an_output_without_a_gradient() -> None:
    with pytest.raises(NotDifferentiable, match=r"^mine returned an output without a gradient function$"):
        verdict(lambda q, k, v, problem: exact(q, k, v, problem).detach(), direction=Direction.BWD)
    unused = verdict(lambda q, k, v, problem: exact(q, k.detach(), v, problem), direction=Direction.BWD)
    assert unused.broken == "dk is missing: the output does not depend on k"


@pytest.mark.parametrize("row", [0, 17, 32])
@pytest.mark.parametrize("make", [torch.empty_like, lambda q: q.new_empty(q.shape)], ids=["empty_like", "new_empty"])
def test_a_row_that_is_not_written_fails(make: Callable[[torch.Tensor], torch.Tensor], row: int) -> None:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        right, out = exact(q, k, v, problem), make(q)
        out[:, :, :row], out[:, :, row + 1 :] = right[:, :, :row], right[:, :, row + 1 :]
        return out

    before = torch.get_deterministic_debug_mode()
    (out,) = verdict(attention).tensors
    assert out.nonfinite == 2 * 16
    assert torch.get_deterministic_debug_mode() == before


def test_two_runs_must_agree_where_determinism_is_claimed() -> None:
    calls = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        calls.append(q)
        return exact(q, k, v, problem) * (1 + (len(calls) % 3 == 0) * 2**-23)

    for direction, name in ((Direction.FWD, "out"), (Direction.BWD, "out")):
        calls.clear()
        mine = Implementation("mine", attention, Capabilities(deterministic=True))
        broken = judge(mine, Case(PROBLEM), direction, CPU).broken
        assert broken == f"it claims to be deterministic, and two runs on the same inputs differ in {name}"
        assert judge(Implementation("mine", attention), Case(PROBLEM), direction, CPU).ok


def test_naive_in_parts_is_the_same_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(2, 4, 2, 33, 40, 16, "bf16", CAUSAL)
    whole = [judge(naive, Case(problem), direction, CPU) for direction in Direction]
    monkeypatch.setattr("pytest_attn.correctness.standard._MOST_SCORES", 1)
    assert [judge(naive, Case(problem), direction, CPU) for direction in Direction] == whole


def test_what_is_beyond_its_budget_is_told_first() -> None:
    where = {"index": (0, 0, 30, 34), "row": (0, 0, 14), "got": 19.875, "want": 12.8011, "error": 7.07}
    by_row = TensorVerdict("dk", ratio=0.0037, rms_ratio=0.0009, row_ratio=2.11, budget=1920.0, **where)
    by_element = dataclasses.replace(by_row, ratio=15.1, budget=0.468)
    by_rms = dataclasses.replace(by_row, rms_ratio=1.5)
    found = Verdict("mine", Case(PROBLEM), Direction.BWD, "cpu", (by_row, by_element, by_rms)).findings()
    row, element = (
        "row [0, 0, 14] is 2.11 times its budget off",
        "at [0, 0, 30, 34]: got 19.875, want 12.8011, off by 7.07",
    )
    assert found == [
        f"  WRONG dk   {row}\n        error/budget 0.0037 (rms 0.0009) {element}, allowed 1.92e+03",
        f"  WRONG dk   error/budget 15.1 (rms 0.0009) {element}, allowed 0.468\n        {row}",
        f"  WRONG dk   error/budget 0.0037 (rms 1.5) {element}, allowed 1.92e+03\n        {row}",
    ]


def test_memory_is_poisoned_before_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that forgets rows must not get back what an earlier, right call left there."""
    order: list[str] = []
    blocks: list[torch.Tensor] = []
    real = torch.full_like

    def full_like(tensor: torch.Tensor, value: float) -> torch.Tensor:
        order.append("poison")
        blocks.append(real(tensor, value))
        return blocks[-1].clone()  # what the allocator does with a freed block is its own affair

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        order.append("call")
        return exact(q, k, v, problem)

    monkeypatch.setattr(torch, "full_like", full_like)
    assert verdict(attention).ok
    assert order.index("poison") < order.index("call")
    assert all(bool(block.isnan().all()) for block in blocks)
    assert {tuple(block.shape) for block in blocks} == {(1, 2, 33, 16)}


def test_a_small_problem_of_a_device_is_judged_on_the_host() -> None:
    device = torch.device("cuda", 1)
    small = Problem(2, 4, 2, 64, 128, 8, "fp16", FULL)
    assert host_or_device(small, device) == CPU
    assert host_or_device(dataclasses.replace(small, q_len=65), device) == device
    assert host_or_device(dataclasses.replace(small, q_len=65), CPU) == CPU

"""Running an implementation: what cannot be compared, what is raised, what is left unwritten."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attn_impls import Capabilities, Implementation, Unavailable, as_implementation
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, Direction, Problem
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.judge import NotDifferentiable, Verdict, judge

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

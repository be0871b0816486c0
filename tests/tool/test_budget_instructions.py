"""The error budget grants what fast kernels do: approximate exp and tanh, subnormals as 0, narrow gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from attn_impls import as_implementation
from attn_impls.problem import CAUSAL, FULL, Direction, Problem
from pytest_attn.correctness.budget import TensorBudget
from pytest_attn.correctness.case import Case, make_tensors
from pytest_attn.correctness.judge import judge
from pytest_attn.correctness.oracle import solve

CPU = torch.device("cpu")


@pytest.mark.parametrize(("low_by", "passes"), [(2, True), (8, False)], ids=["2 ulp", "8 ulp"])
def test_exponentials_that_are_all_too_small_alike(low_by: int, passes: bool) -> None:
    """CUDA's ex2.approx is right to 2 ulp; logits that differ by 1e-6 make of that another scale, by 5 %."""
    problem = Problem(5, 3, 3, 2000, 2, 16, "fp32", FULL)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        scores = problem.softmax_scale * (q @ k.mT)
        terms = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        terms = torch.where(terms < 1, terms - low_by * 2.0**-24, terms)
        return (terms @ v) / terms.sum(dim=-1, keepdim=True)

    (out,) = judge(as_implementation(attention, "mine"), Case(problem, "tiny"), Direction.FWD, CPU).tensors
    assert out.ok is passes
    assert out.scale == pytest.approx(0.02 * low_by, abs=0.03)
    assert out.scale_budget < 0.12


def test_where_such_exponentials_move_the_output() -> None:
    problem = Problem(1, 2, 1, 5, 7, 4, "fp32", CAUSAL)
    tensors = make_tensors(Case(problem), CPU)
    truth = solve(problem, tensors, gradients=False)
    q, k, v = (t.double() for t in (tensors.q, tensors.k, tensors.v))
    scores = problem.softmax_scale * (q @ k.mT)
    scores = scores.masked_fill(scores.new_ones(5, 7).triu(3).bool(), -math.inf)
    highest = scores.amax(dim=-1, keepdim=True)
    terms = (scores - highest).exp()
    terms = torch.where(scores == highest, terms, (1 - 1e-6) * terms)
    moved = ((terms / terms.sum(dim=-1, keepdim=True)) @ v - truth.exact["out"]) * (2.0**-22 / 1e-6)
    torch.testing.assert_close(truth.by_exp["out"], moved, rtol=1e-4, atol=1e-13)


Rounding = Callable[[torch.Tensor], torch.Tensor]


def beside_exact(
    problem: Problem, regime: str, tanh: Rounding = torch.tanh, round_dlogits: Rounding = lambda x: x
) -> bool:
    """Tell whether float64 with this ``tanh`` and so rounded gradients of logits passes beside a naive without errors.

    So good naive is on some devices.
    """
    tensors = make_tensors(Case(problem, regime), CPU)
    truth = solve(problem, tensors, gradients=True)
    group = problem.heads // problem.kv_heads
    q, k, v, dout = (t.double() for t in (tensors.q, tensors.k, tensors.v, tensors.dout))
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    cap, scale = problem.softcap or 0.0, problem.softmax_scale
    squash = tanh(scale * (q @ k.mT) / cap)
    weights = (cap * squash).softmax(dim=-1)
    out = weights @ v
    dlogits = weights * (dout @ v.mT - (dout * out).sum(dim=-1, keepdim=True)) * (1 - squash.square())
    dlogits = round_dlogits(dlogits)
    dk, dv = (x.unflatten(1, (-1, group)).sum(dim=2) for x in (scale * dlogits.mT @ q, weights.mT @ dout))
    found = {"out": out, "dq": scale * dlogits @ k, "dk": dk, "dv": dv, "lse": (cap * squash).logsumexp(dim=-1)}
    dtypes = {name: torch.float32 if name == "lse" else tensors.q.dtype for name in found}
    verdicts = [
        TensorBudget(name, [truth.exact[name].to(dtypes[name])], truth).judge(name, tensor.to(dtypes[name]))
        for name, tensor in found.items()
    ]
    return all(verdict.ok for verdict in verdicts)


@pytest.mark.parametrize(
    ("dtype", "bits", "passes"), [("fp16", 11, True), ("fp16", 9, False), ("fp32", 24, True), ("fp32", 14, False)]
)
@pytest.mark.parametrize("cap", [1.0, 20.0])
@pytest.mark.parametrize("error", [torch.ones_like, lambda x: torch.sin(1e3 * x)], ids=["low", "either way"])
def test_a_tanh_that_is_approximate(dtype: str, bits: int, passes: bool, cap: float, error: Rounding) -> None:
    """Kernels for 16-bit numbers use CUDA's tanh.approx, right to 2^-11, and 1 - tanh^2 may be all error."""
    problem = Problem(1, 2, 1, 2, 513, 64, dtype, FULL, softcap=cap)
    assert beside_exact(problem, "large_logits", lambda x: torch.tanh(x) * (1 - 2.0**-bits * error(x))) is passes


@pytest.mark.parametrize(("times", "passes"), [(1, True), (16, False)])
def test_gradients_of_logits_that_are_rounded_where_they_are_small(times: int, passes: bool) -> None:
    """flash-attn rounds them times scale/cap, where fp16 has few steps left: it gave 10 of them on an H100 here."""
    problem = Problem(1, 4, 1, 1, 1025, 128, "fp16", FULL, softcap=20.0)
    beside = problem.softmax_scale / 20 / times
    assert beside_exact(problem, "one_hot", round_dlogits=lambda x: (x * beside).half().double() / beside) is passes


@pytest.mark.parametrize(("flushed", "passes"), [(2.0**-126, True), (2.0**-122, False)], ids=["subnormal", "16 times"])
def test_results_below_the_normal_numbers_may_be_0(flushed: float, passes: bool) -> None:
    """Kernels that are built to be fast take such numbers as 0, as cuDNN's backward seems to."""
    problem = Problem(1, 1, 1, 1, 511, 64, "bf16", FULL, scale=0.3)
    truth = solve(problem, make_tensors(Case(problem, "limits"), CPU), gradients=True)
    dv = truth.exact["dv"]
    assert 0.1 < float((dv.abs() < 2.0**-126).double().mean()) < 0.9
    verdict = TensorBudget("dv", [dv.bfloat16()], truth).judge("dv", dv.masked_fill(dv.abs() < flushed, 0).bfloat16())
    assert verdict.ok is passes


def test_every_query_head_of_a_group_may_lose_such_numbers() -> None:
    """Where dv of each is rounded before they are added up, 16 heads lose up to 16 of them, all to the same side."""
    problem = Problem(1, 16, 1, 1, 33, 64, "bf16", FULL)
    tensors = make_tensors(Case(problem, "limits"), CPU)
    with_equal_heads = dataclasses.replace(tensors, q=tensors.q[:, :1].expand_as(tensors.q) * 0)
    lost = dataclasses.replace(with_equal_heads, dout=torch.full_like(tensors.dout, 32 * 2.0**-126))
    truth = solve(problem, lost, gradients=True)  # each head gives 32/33 of the smallest normal number
    assert TensorBudget("dv", [truth.exact["dv"].bfloat16()], truth).judge("dv", torch.zeros(1, 1, 33, 64)).ok
    one = dataclasses.replace(lost, q=lost.q[:, :1], dout=lost.dout[:, :1])
    alone = solve(dataclasses.replace(problem, heads=1), one, gradients=True)
    wrong = torch.zeros(1, 1, 33, 64) + 8 * 2.0**-126
    assert not TensorBudget("dv", [alone.exact["dv"].bfloat16()], alone).judge("dv", wrong).ok

"""The error budget: right implementations pass in each dtype, wrong ones fail and say where."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attn_impls import Capabilities, Implementation, as_implementation
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, FULL, Direction, Mask, Problem
from pytest_attn.correctness.budget import TensorBudget
from pytest_attn.correctness.case import Case, make_tensors
from pytest_attn.correctness.judge import Verdict, judge
from pytest_attn.correctness.oracle import Truth
from pytest_attn.correctness.regimes import REGIMES
from pytest_attn.correctness.standard import judge_results
from pytest_attn.correctness.storage import STORAGES

CPU = torch.device("cpu")
PROBLEM = Problem(1, 2, 2, 33, 33, 16, "fp32", CAUSAL)
DTYPES = pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
DIRECTIONS = pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, factor: float = 1.0) -> torch.Tensor:
    """Attention in float32 inside, as a fused kernel does it; ``factor`` spoils the scale."""
    scores = (q.float() @ k.float().mT) * (factor * problem.softmax_scale)
    if problem.mask == CAUSAL:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


def verdict(fn: Callable[..., Any], problem: Problem = PROBLEM, direction: Direction = Direction.FWD) -> Verdict:
    return judge(as_implementation(fn, "mine"), Case(problem), direction, CPU)


def truth_of(exact: torch.Tensor, noise: torch.Tensor) -> Truth:
    """A truth whose scatter is its noise, and which says nothing of the scale."""
    return Truth({"out": exact.double()}, {"out": noise}, {"out": noise}, {}, {})


@DTYPES
@DIRECTIONS
@pytest.mark.parametrize("regime", REGIMES)
def test_a_right_one_passes(regime: str, direction: Direction, dtype: str) -> None:
    for seed, head_dim, kv_len in ((0, 64, 65), (1, 128, 33), (2, 1, 17)):
        problem = Problem(1, 2, 2, kv_len, kv_len, head_dim, dtype, CAUSAL)
        result = judge(as_implementation(exact, "mine"), Case(problem, regime, seed), direction, CPU)
        assert result.ok, result.explain()
        assert 0 <= result.ratio <= 1
        assert [t.name for t in result.tensors] == ["out"] + ["dq", "dk", "dv"] * (direction is Direction.BWD)


@DTYPES
@DIRECTIONS
@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_a_scale_one_percent_off_fails(factor: float, direction: Direction, dtype: str) -> None:
    problem = dataclasses.replace(PROBLEM, heads=4, kv_heads=4, q_len=129, kv_len=129, head_dim=64, dtype=dtype)
    result = verdict(lambda q, k, v, problem: exact(q, k, v, problem, factor), problem, direction)
    assert not result.ok
    assert result.ratio > (100 if dtype == "fp32" else 1)
    assert result.tensors[0].scale == pytest.approx(factor - 1, rel=0.2)
    assert "  the softmax scale seems off by " in result.explain()


@DTYPES
@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_an_output_one_percent_off_fails(factor: float, dtype: str) -> None:
    problem = dataclasses.replace(PROBLEM, heads=4, kv_heads=4, q_len=129, kv_len=129, head_dim=64, dtype=dtype)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        return (factor * exact(q.float(), k.float(), v.float(), problem)).to(q.dtype)

    (out,) = verdict(attention, problem).tensors
    assert out.gain_ratio > 1
    assert out.gain == pytest.approx(factor - 1, rel=0.2)


@pytest.mark.parametrize("name", ["dq", "dk", "dv"])
def test_a_gradient_one_percent_off_fails_in_bf16(name: str) -> None:
    problem = dataclasses.replace(PROBLEM, heads=4, kv_heads=4, q_len=129, kv_len=129, head_dim=64, dtype="bf16")
    tensors = make_tensors(Case(problem), CPU)
    leaves = [t.float().requires_grad_() for t in (tensors.q, tensors.k, tensors.v)]
    found = torch.autograd.grad(exact(*leaves, problem), leaves, tensors.dout.float())
    gradients = dict(zip(("dq", "dk", "dv"), found, strict=True))
    gradients[name] = 1.01 * gradients[name]
    results = judge_results({n: g.bfloat16() for n, g in gradients.items()}, problem, tensors)
    assert [tensor.name for tensor in results if not tensor.ok] == [name]


@pytest.mark.parametrize("seed", range(4))
def test_fp16_sums_over_tiles_that_add_less_than_a_step_pass(seed: int) -> None:
    """PyTorch's flash backward on a CPU keeps such sums: a tenth of dk is lost, far below an element's rounding."""
    problem = Problem(1, 24, 3, 79, 192, 13, "fp16", FULL)
    tensors = make_tensors(Case(problem, "tiny", seed), CPU)
    shared = (t.repeat_interleave(8, dim=1) for t in (tensors.k, tensors.v))
    q, k, v = (t.detach().float().requires_grad_() for t in (tensors.q, *shared))
    scores = (q @ k.mT) * problem.softmax_scale
    dq, dscores, dv = torch.autograd.grad(scores.softmax(-1) @ v, (q, scores, v), tensors.dout.float())
    dk = torch.zeros(1, 3, 192, 13, dtype=torch.float16)
    for head in range(24):
        for rows in (slice(tile, tile + 32) for tile in range(0, 79, 32)):
            dk[:, head // 8] += (problem.softmax_scale * dscores[:, head, rows].mT @ q[:, head, rows].detach()).half()
    gradients = {"dq": dq.half(), "dk": dk, "dv": dv.unflatten(1, (3, 8)).sum(2).half()}
    for found in judge_results(gradients, problem, tensors):
        assert found.ok, found
    for factor in (0, 0.5, 2):  # what is 5 steps large cannot be told from 4 or 6
        wrong = judge_results({**gradients, "dk": factor * dk}, problem, tensors)
        assert [found.name for found in wrong if not found.ok] == ["dk"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("value", [0.0, 1.0], ids=["left out", "of another query"])
def test_one_wrong_row_of_many_fails(value: float, dtype: str) -> None:
    # A late row is the mean of many values: smaller than what naive gets wrong in the first ones.
    problem = Problem(1, 2, 2, 1025, 1025, 32, dtype, CAUSAL)
    result = verdict(spoiled(lambda out: out[0, 1, 1000].mul_(0).add_(value * out[0, 1, 700])), problem)
    (out,) = result.tensors
    assert out.row_ratio > 1
    assert out.row == (0, 1, 1000)
    assert out.rms_ratio < 1
    assert "  row [0, 1, 1000] is " in result.explain()


def spoiled(change: Callable[[torch.Tensor], object]) -> Callable[..., torch.Tensor]:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        out = exact(q, k, v, problem).clone()
        change(out)
        return out

    return attention


def put(out: torch.Tensor, value: float) -> None:
    out[0, 1, 7, 3] = value


@DTYPES
@pytest.mark.parametrize(
    "change",
    [
        lambda out: put(out, out[0, 1, 7, 3] + 0.2),
        lambda out: put(out, math.nan),
        lambda out: put(out, math.inf),
        lambda out: out.add_(0.05),
        lambda out: out.zero_(),
        lambda out: out.neg_(),
        lambda out: out.copy_(out.roll(1, dims=2)),
    ],
    ids=["element", "nan", "inf", "shift", "zeros", "sign", "rows rolled"],
)
def test_wrong_outputs_fail(change: Callable[[torch.Tensor], object], dtype: str) -> None:
    result = verdict(spoiled(change), dataclasses.replace(PROBLEM, dtype=dtype))
    assert not result.ok
    assert result.ratio > 1


def test_the_worst_element_is_named() -> None:
    (tensor,) = verdict(spoiled(lambda out: put(out, 5.0))).tensors
    assert tensor.index == (0, 1, 7, 3)
    assert tensor.got == 5.0
    assert tensor.error == pytest.approx(abs(5.0 - tensor.want))
    assert tensor.ratio == pytest.approx(tensor.error / tensor.budget)
    assert tensor.nonfinite == 0
    text = verdict(spoiled(lambda out: put(out, math.nan))).explain()
    assert "mine is wrong on b1-h2-kv2-q33-k33-d16-fp32-causal\n  regime normal, seed 0, fwd, on cpu\n" in text
    assert "WRONG out  error/budget inf (rms inf) at [0, 1, 7, 3]: got nan" in text
    assert text.endswith("  1 values are not finite")


def test_a_small_error_everywhere_fails_by_its_mean() -> None:
    # Each element is within twice the largest error of naive, yet all are as bad as naive's worst.
    truth = truth_of(torch.zeros(1000), torch.full((1000,), 1e-6))
    yardstick = torch.zeros(1000)
    yardstick[0] = 1.0
    result = TensorBudget("out", [yardstick], truth).judge("out", torch.full((1000,), 1.5))
    assert result.ratio <= 1 < result.rms_ratio
    assert not result.ok


def test_budget_is_twice_naive_plus_four_times_noise() -> None:
    truth = truth_of(torch.zeros(2), torch.tensor([0.5, 0.25]))
    yardstick = torch.tensor([0.0, 3.0])
    result = TensorBudget("out", [yardstick], truth).judge("out", torch.tensor([0.0, 7.0]))
    assert result.budget == 2 * 3.0 + 4 * 0.25
    assert result.ratio == 1.0
    assert result.rms_ratio == pytest.approx((49 / 2) ** 0.5 / (2 * (9 / 2) ** 0.5 + 4 * ((0.25 + 0.0625) / 2) ** 0.5))


def test_row_budget_follows_the_scatter_of_the_row() -> None:
    truth = truth_of(torch.zeros(2, 4), torch.tensor([[1.0], [0.01]]).expand(2, 4))
    yardstick = torch.tensor([[2.0], [0.03]]).expand(2, 4)  # at worst three times the scatter of its row
    result = TensorBudget("out", [yardstick], truth).judge("out", torch.tensor([[1.0], [0.05]]).expand(2, 4))
    assert result.row == (1,)
    assert result.row_ratio == pytest.approx(0.05 / (0.01 * (2 * 3 + 4)))


def test_gain_budget_is_naives_gain_its_deviation_and_one_rounding() -> None:
    exact_out = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    truth = truth_of(exact_out, torch.full((2, 2), 0.01))
    yardstick = exact_out + torch.tensor([[0.1, 0.1], [-0.05, 0.0]])
    result = TensorBudget("out", [yardstick], truth).judge("out", 1.5 * exact_out)
    rows, size = (0.2, -0.1), 6.0
    deviation = math.sqrt(rows[0] ** 2 + rows[1] ** 2 + 0.02**2 + 0.02**2) / size
    assert result.gain == pytest.approx(0.5)
    assert result.gain_budget == pytest.approx(2 * 0.1 / size + 4 * deviation, rel=1e-4)
    assert result.gain_ratio == pytest.approx(0.5 / result.gain_budget)


@DIRECTIONS
@DTYPES
def test_an_exact_naive_is_no_trap(dtype: str, direction: Direction) -> None:
    problem = Problem(1, 2, 2, 1, 1, 16, dtype, FULL)  # one key: naive's error is 0

    def rounded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        return exact(q, k, v, problem) * (1 + torch.finfo(q.dtype).eps)

    assert verdict(rounded, problem, direction).ok
    percent = verdict(lambda q, k, v, problem: exact(q, k, v, problem) * 1.05, problem, direction)
    assert not percent.ok


@DIRECTIONS
def test_an_empty_batch_passes(direction: Direction) -> None:
    result = verdict(exact, dataclasses.replace(PROBLEM, batch=0), direction)
    assert result.ok, result.explain()
    assert result.ratio == 0


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda lse: None, True),
        (lambda lse: lse.mul_(1 + 2**-22), True),
        (lambda lse: lse[0, 0, 5].fill_(-torch.inf), False),
        (lambda lse: lse[0, 0, 5].fill_(math.nan), False),
        (lambda lse: lse.add_(0.01), False),
        (lambda lse: lse.mul_(1.4427), False),  # in base 2
    ],
    ids=["right", "ulp", "-inf", "nan", "shift", "base 2"],
)
def test_lse(change: Callable[[torch.Tensor], object], passes: bool) -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem, return_lse: bool = False) -> Any:
        out, lse = naive(q, k, v, problem, return_lse=True)
        change(lse)
        return (out, lse) if return_lse else out

    mine = Implementation("mine", attention, Capabilities(returns_lse=True))
    result = judge(mine, Case(PROBLEM), Direction.FWD, CPU)
    found = {tensor.name: tensor.ok for tensor in result.tensors}
    assert found == {"out": True, "out with lse": True, "lse": passes}


def test_the_output_is_judged_as_it_is_called_without_lse() -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem, return_lse: bool = False) -> Any:
        return naive(q, k, v, problem, return_lse=True) if return_lse else torch.zeros_like(q)

    mine = Implementation("mine", attention, Capabilities(returns_lse=True))
    result = judge(mine, Case(PROBLEM), Direction.FWD, CPU)
    assert {tensor.name: tensor.ok for tensor in result.tensors} == {"out": False, "out with lse": True, "lse": True}


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_an_input_that_was_changed_is_found(name: str) -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> Any:
        out = naive(q, k, v, problem)
        {"q": q, "k": k, "v": v}[name][-1, -1, -1, -1] += 1
        return out

    result = judge(Implementation("mine", attention), Case(PROBLEM), Direction.FWD, CPU)
    assert result.broken == f"it changed its input {name}"


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("value", [0.0, -math.nan])
def test_a_write_beside_an_input_is_found(name: str, value: float) -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> Any:
        written = {"q": q, "k": k, "v": v}[name]
        behind = written.storage_offset() + written.shape[-1]
        torch.as_strided(written, (1,), (1,), behind).fill_(value)
        return naive(q, k, v, problem)

    case = Case(PROBLEM, seed=STORAGES.index("wide_rows"))
    result = judge(Implementation("mine", attention), case, Direction.FWD, CPU)
    assert result.broken == f"it changed the memory around its input {name}"


@pytest.mark.parametrize("value", [0.0, math.nan, -1e30, math.inf])
def test_lse_of_a_row_without_keys_is_minus_infinity(value: float) -> None:
    problem = dataclasses.replace(PROBLEM, q_len=35)
    tensors = make_tensors(Case(problem), CPU)
    _out, lse = naive(tensors.q, tensors.k, tensors.v, problem, return_lse=True)
    assert judge_results({"lse": lse}, problem, tensors)[0].ok
    lse[0, 0, 0] = value
    result = judge_results({"lse": lse}, problem, tensors)[0]
    assert not result.ok
    assert result.nonfinite == 1


@pytest.mark.parametrize("name", ["dq", "dk", "dv"])
def test_each_gradient_is_judged(name: str) -> None:
    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 1.01

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        inputs = {"dq": q, "dk": k, "dv": v}
        inputs[name] = Spoil.apply(inputs[name])
        return exact(*inputs.values(), problem)

    result = verdict(attention, direction=Direction.BWD)
    assert [tensor.name for tensor in result.tensors if not tensor.ok] == [name]
    assert verdict(attention).ok


def eager(by_q: float, by_k: float) -> Implementation:
    """Plain PyTorch with a part of the scale on q and on k."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, **kwargs: Any) -> Any:
        scale = problem.softmax_scale
        return naive(scale**by_q * q, scale**by_k * k, v, dataclasses.replace(problem, scale=1.0), **kwargs)

    return Implementation("eager", attention, naive.capabilities)


@pytest.mark.parametrize(
    ("impl", "problem", "regime", "seed"),
    [
        (eager(1, 0), Problem(3, 4, 4, 256, 256, 16, "fp16", FULL, scale=0.3), "early_outlier_key", 714),
        (eager(0, 1), Problem(5, 4, 1, 256, 256, 5, "bf16", Mask("window", None, 74)), "early_outlier_key", 305),
        (eager(0.5, 0.5), Problem(5, 1, 1, 96, 96, 64, "fp16", Mask("window", None, 52)), "outlier_key", 65535),
    ],
    ids=["q", "k", "both"],
)
def test_plain_pytorch_passes_wherever_it_applies_the_scale(
    impl: Implementation, problem: Problem, regime: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By luck alone each is further off than twice naive here.
    case = Case(problem, regime, seed)
    result = judge(impl, case, Direction.BWD, CPU)
    assert result.ok, result.explain()
    monkeypatch.setattr("pytest_attn.correctness.standard.OTHER_ORDERS", ())
    assert not judge(impl, case, Direction.BWD, CPU).ok

"""The oracle against another formula and autograd in float64, and its noise against what float32 really does."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from pytest_attn.correctness.budget import FLOOR
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.oracle import solve
from pytest_attn.correctness.regimes import REGIMES

CPU = torch.device("cpu")
BASE = Problem(2, 2, 2, 7, 7, 5, "fp32", FULL)
PROBLEMS = [
    dataclasses.replace(BASE, **changes)
    for changes in (
        {},
        {"mask": CAUSAL},
        {"mask": CAUSAL, "kv_len": 11},
        {"mask": CAUSAL, "q_len": 11},  # the first four queries see no key
        {"mask": Mask("causal_top_left"), "kv_len": 4},
        {"mask": Mask("window", 2, 0)},
        {"mask": Mask("window", 1, 2), "kv_len": 9},
        {"mask": Mask("window", None, 1), "q_len": 9},  # the first query sees no key
        {"mask": Mask("window", 0, None)},
        {"heads": 6},
        {"heads": 6, "kv_heads": 1, "mask": CAUSAL},
        {"softcap": 1.0},
        {"softcap": 20.0, "mask": CAUSAL, "heads": 4},
        {"scale": 0.3},
        {"scale": 1.0, "softcap": 1.0, "mask": CAUSAL, "q_len": 9, "heads": 4, "layout": "bhsd"},
        {"q_len": 1, "kv_len": 1},
    )
]


def visible(problem: Problem, query: int, key: int) -> bool:
    last, mask = query + problem.kv_len - problem.q_len, problem.mask
    if mask.kind == "causal":
        return key <= last
    if mask.kind == "causal_top_left":
        return key <= query
    if mask.kind == "window":
        return (mask.left is None or key >= last - mask.left) and (mask.right is None or key <= last + mask.right)
    return True


def row_by_row(
    problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention from its definition: for each query the keys that it sees, their exponentials, their mean."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:-1], -torch.inf, dtype=q.dtype)
    rows = []
    for b in range(problem.batch):
        for h in range(problem.heads):
            shared = h // (problem.heads // problem.kv_heads)
            for i in range(problem.q_len):
                keys = [j for j in range(problem.kv_len) if visible(problem, i, j)]
                if not keys:
                    rows.append(0 * q[b, h, i])
                    continue
                logits = torch.stack([q[b, h, i].dot(k[b, shared, j]) for j in keys]) * problem.softmax_scale
                if problem.softcap is not None:
                    logits = problem.softcap * torch.tanh(logits / problem.softcap)
                terms = torch.exp(logits)
                rows.append(sum(t * v[b, shared, j] for t, j in zip(terms, keys, strict=True)) / terms.sum())
                lse[b, h, i] = terms.sum().log().detach()
    out = torch.stack(rows).reshape(q.shape)
    return out, lse


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_against_autograd_of_the_definition(problem: Problem) -> None:
    tensors = make_tensors(Case(problem, seed=1), CPU)
    truth = solve(problem, tensors, gradients=True)
    leaves = [t.double().requires_grad_() for t in (tensors.q, tensors.k, tensors.v)]
    out, lse = row_by_row(problem, *leaves)
    gradients = torch.autograd.grad(out, leaves, tensors.dout.double())
    expected = {"out": out.detach(), "lse": lse, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
    assert set(truth.exact) == set(truth.noise) == set(expected)
    for name, want in expected.items():
        got = truth.exact[name]
        assert got.dtype == torch.float64
        assert got.shape == truth.noise[name].shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
@pytest.mark.parametrize("most_scores", [1, 40])
def test_slices_change_nothing(problem: Problem, most_scores: int) -> None:
    tensors = make_tensors(Case(problem, seed=1), CPU)
    whole = solve(problem, tensors, gradients=True)
    sliced = solve(problem, tensors, gradients=True, most_scores=most_scores)
    for part in ("exact", "noise", "scatter", "by_log_scale", "by_exp"):
        for name, want in getattr(whole, part).items():
            torch.testing.assert_close(getattr(sliced, part)[name], want, rtol=1e-12, atol=1e-12)


def test_slices_bound_the_memory() -> None:
    problem = Problem(1, 2, 1, 4000, 4000, 8, "fp32", CAUSAL)
    sizes = []
    real = torch.exp

    def exp(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return real(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "exp", exp)
        solve(problem, make_tensors(Case(problem), CPU), gradients=False, most_scores=2**22)
    assert max(sizes) <= 2**22
    assert sum(sizes) == 2 * 4000 * 4000


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_derivative_by_log_scale(problem: Problem) -> None:
    tensors = make_tensors(Case(problem, seed=1), CPU)
    log_scale = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    q, k, v = (t.double() for t in (tensors.q, tensors.k, tensors.v))
    by_scale = solve(problem, tensors, gradients=False).by_log_scale["out"]
    direction = torch.randn(q.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out, _lse = row_by_row(problem, log_scale.exp() * q, k, v)
    (want,) = torch.autograd.grad(out, log_scale, direction)
    assert float((by_scale * direction).sum()) == pytest.approx(float(want), rel=1e-9, abs=1e-12)


def test_rows_without_a_key_are_zero_and_minus_infinity() -> None:
    problem = dataclasses.replace(BASE, mask=CAUSAL, q_len=11)
    truth = solve(problem, make_tensors(Case(problem), CPU), gradients=True)
    assert (truth.exact["out"][:, :, :4] == 0).all()
    assert (truth.exact["lse"][:, :, :4] == -torch.inf).all()
    assert (truth.exact["dq"][:, :, :4] == 0).all()
    assert all(noise.isfinite().all() for noise in truth.noise.values())


def test_forward_alone() -> None:
    assert set(solve(BASE, make_tensors(Case(BASE), CPU), gradients=False).exact) == {"out", "lse"}


def float32_attention(problem: Problem, tensors: Tensors) -> dict[str, torch.Tensor]:
    """A right computation in float32, its keys in two tiles with online softmax, rounded once to the dtype."""
    leaves = [t.float().requires_grad_() for t in (tensors.q, tensors.k, tensors.v)]
    q, k, v = leaves
    mask = torch.tensor([[visible(problem, i, j) for j in range(problem.kv_len)] for i in range(problem.q_len)])
    half = problem.kv_len // 2
    maximum, total, out = torch.tensor(-1e30), torch.tensor(0.0), torch.tensor(0.0)
    for tile in (slice(0, half), slice(half, None)):
        scores = q @ k[:, :, tile].mT * problem.softmax_scale
        if problem.softcap is not None:  # as kernels compute tanh
            scores = problem.softcap * (1 - 2 / (torch.exp(2 * scores / problem.softcap) + 1))
        scores = scores.masked_fill(~mask[:, tile], -torch.inf)
        larger = torch.maximum(maximum, scores.detach().amax(-1, keepdim=True))
        weights = torch.exp(scores - larger)
        shrink = torch.exp(maximum - larger)
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + weights @ v[:, :, tile]
        maximum = larger
    out = out / total
    gradients = torch.autograd.grad(out, leaves, tensors.dout.float())
    results = {"out": out, "lse": (maximum + total.log()).squeeze(-1)}
    results |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    dtype = tensors.q.dtype
    return {name: t.detach() if name == "lse" else t.detach().to(dtype) for name, t in results.items()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("regime", REGIMES)
def test_noise_covers_a_float32_computation(regime: str, dtype: str) -> None:
    for head_dim, mask, softcap, seed in ((64, CAUSAL, None, 0), (128, FULL, None, 1), (8, CAUSAL, 20.0, 2)):
        problem = Problem(1, 2, 2, 65, 65, head_dim, dtype, mask, softcap)
        tensors = make_tensors(Case(problem, regime, seed), CPU)
        truth = solve(problem, tensors, gradients=True)
        for name, got in float32_attention(problem, tensors).items():
            noise = truth.noise[name]
            assert (noise > 0).all(), name
            error = (got.double() - truth.exact[name]).abs()
            assert (error <= FLOOR * noise).all(), (name, head_dim, float((error / noise).max()))


@pytest.mark.parametrize(
    ("dtype", "eps", "out", "gradient"), [("fp32", 2**-23, 40, 400), ("bf16", 2**-7, 0.8, 7), ("fp16", 2**-10, 0.8, 7)]
)
def test_noise_is_not_larger_than_it_must(dtype: str, eps: float, out: float, gradient: float) -> None:
    problem = Problem(1, 2, 2, 65, 65, 64, dtype, FULL)
    truth = solve(problem, make_tensors(Case(problem), CPU), gradients=True)
    # On N(0, 1), in units of the dtype's step at 1: less than twice what it is today, or wrong kernels pass.
    limits = {"out": out * eps, "dv": out * eps, "dq": gradient * eps, "dk": gradient * eps, "lse": 30 * 2**-23}
    assert {name: float(noise.median()) < limits[name] for name, noise in truth.noise.items()} == dict.fromkeys(
        limits, True
    )

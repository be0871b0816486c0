"""Our kernels against a float64 reference: tile edges, masks, groups, layouts, dtypes, both gradients, empty rows."""

from __future__ import annotations

import doctest

import pytest
import torch

from attn_impls.implementation import Implementation
from attn_impls.masks import visible
from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.tiled import algorithm1, tiled_cpu, tiled_seq, tiled_torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Sums are fp32 everywhere and every result is rounded once; delta = rowsum(dO * O) sees the rounded O. The backward
# pass of tiled-cpu also rounds the factors P and dS to bf16, where the inputs are bf16 and the CPU multiplies it.
TOLERANCE = {"fp32": 2e-6, "bf16": 2**-7, "fp16": 2**-10}

MASKS = (
    FULL,
    CAUSAL,
    Mask("causal_top_left"),
    Mask("window", 5, 3),
    Mask("window", None, 2),
    Mask("window", 40, None),
)
# One, just below, at and above the tiles of 32, 64 and 128; more queries than keys (empty rows) and the reverse.
LENGTHS = ((1, 1), (1, 129), (31, 33), (64, 64), (65, 127), (128, 40), (130, 257))

PROBLEMS = [
    *(
        Problem(2, 2, 1, q, k, 24, dtype, mask)
        for q, k in LENGTHS
        for dtype, mask in zip(("fp32", "bf16", "fp16") * 2, MASKS, strict=True)
    ),
    *(Problem(1, 2, 2, 70, 70, d, "fp32", CAUSAL) for d in (1, 15, 16, 17, 64, 96, 128, 256)),
    *(Problem(1, 2, 1, 70, 70, d, "bf16", CAUSAL) for d in (1, 16, 33, 64, 128)),
    # Several tiles both ways, so that a mask hides parts of a tile as well as whole ones.
    *(Problem(1, 2, 1, 150, 280, 33, "bf16", mask) for mask in MASKS),
    Problem(2, 6, 2, 90, 150, 32, "fp32", CAUSAL),
    Problem(1, 6, 1, 90, 150, 32, "fp16", Mask("window", 20, 0)),
    Problem(2, 4, 2, 66, 66, 16, "fp32", CAUSAL, layout="bhsd"),
    Problem(1, 2, 2, 66, 66, 16, "fp32", CAUSAL, scale=0.3),
    Problem(0, 2, 2, 66, 66, 16, "fp32", CAUSAL),
]


def inputs(problem: Problem, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def make(heads: int, length: int) -> torch.Tensor:
        shape = [problem.batch, length, heads, problem.head_dim]
        if problem.layout == "bhsd":
            shape[1:3] = [heads, length]
        made = torch.randn(shape, generator=generator).to(device, DTYPES[problem.dtype])
        return (made if problem.layout == "bhsd" else made.transpose(1, 2)).requires_grad_()

    sizes = ((problem.heads, problem.q_len), *[(problem.kv_heads, problem.kv_len)] * 2)
    return tuple(make(heads, length) for heads, length in sizes)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in float64, with gradients also where a row has no visible key."""
    q, k, v = q.double(), k.double(), v.double()
    group = problem.heads // problem.kv_heads
    scores = problem.softmax_scale * q @ k.repeat_interleave(group, 1).mT
    seen = visible(problem, q.device)
    seen = torch.ones_like(scores[0, 0], dtype=torch.bool) if seen is None else seen
    empty = ~seen.any(-1, keepdim=True)
    scores = scores.masked_fill(~seen & ~empty, float("-inf"))
    out = (scores.softmax(-1) @ v.repeat_interleave(group, 1)).masked_fill(empty, 0.0)
    return out, scores.logsumexp(-1).masked_fill(empty[:, 0], float("-inf"))


def assert_close(name: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    if expected.numel() == 0:
        assert got.shape == expected.shape
        return
    bound = tolerance * max(1.0, expected.nan_to_num(neginf=0.0).abs().max().item())
    assert torch.equal(got.isneginf(), expected.isneginf()), f"{name}: -inf in other places"
    error = (got.double() - expected).masked_fill(expected.isneginf(), 0.0).abs().max().item()
    assert error <= bound, f"{name}: error {error:.3g} exceeds {bound:.3g}"


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.id)
@pytest.mark.parametrize("impl", [tiled_torch, tiled_seq, tiled_cpu], ids=lambda impl: impl.name)
def test_outputs_and_gradients(impl: Implementation, problem: Problem) -> None:
    q, k, v = inputs(problem)
    out, lse = impl(q, k, v, problem, return_lse=True)
    expected, expected_lse = reference(q, k, v, problem)
    assert out.dtype == q.dtype
    assert out.shape == q.shape
    assert (out if problem.layout == "bhsd" else out.transpose(1, 2)).is_contiguous()
    assert lse.dtype == torch.float32
    tolerance = TOLERANCE[problem.dtype]
    assert_close("out", out, expected, tolerance)
    assert_close("lse", lse, expected_lse, 2e-6)

    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator).to(out.dtype)
    dlse = torch.randn(lse.shape, generator=generator).masked_fill(lse.isneginf(), 0.0)
    grads = torch.autograd.grad((out, lse), (q, k, v), (dout, dlse))
    expected_grads = torch.autograd.grad((expected, expected_lse), (q, k, v), (dout.double(), dlse.double()))
    for name, x, got, want in zip("qkv", (q, k, v), grads, expected_grads, strict=True):
        assert got.dtype == x.dtype
        # The reference's gradients are rounded to the inputs' dtype too.
        assert_close(f"d{name}", got, want.double(), 2 * tolerance)


@pytest.mark.parametrize("impl", [tiled_torch, tiled_seq, tiled_cpu], ids=lambda impl: impl.name)
def test_huge_logits_and_nan(impl: Implementation) -> None:
    problem = Problem(1, 1, 1, 40, 200, 16, "fp32", CAUSAL)
    q, k, v = (x.detach() for x in inputs(problem))
    assert_close("out", impl(q * 1e4, k, v, problem), reference(q * 1e4, k, v, problem)[0], 1e-5)
    q[0, 0, 7] = float("nan")
    rows = impl(q, k, v, problem).isnan().all(-1)[0, 0]
    assert rows.nonzero().flatten().tolist() == [7], "a NaN query must poison its own row and no other"


@pytest.mark.parametrize("impl", [tiled_seq, tiled_cpu], ids=lambda impl: impl.name)
def test_odd_strides(impl: Implementation) -> None:
    problem = Problem(2, 2, 2, 50, 50, 32, "fp32", CAUSAL)
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(2, 50, 3, 2, 32, generator=generator)  # qkv side by side, as a projection leaves them
    q, k, v = (packed[:, :, i].transpose(1, 2).requires_grad_() for i in range(3))
    out = impl(q, k, v, problem)
    assert_close("out", out, reference(q, k, v, problem)[0], 2e-6)
    assert torch.autograd.grad(out.sum(), v)[0].shape == v.shape  # a gradient whose strides are all 0
    turned = q.detach().mT.contiguous().mT  # the last dimension is not the contiguous one
    torch.testing.assert_close(impl(turned, k, v, problem), out, rtol=0, atol=0)


def test_algorithm1_examples() -> None:
    result = doctest.testmod(algorithm1)
    assert result.attempted > 0
    assert result.failed == 0


def test_tiled_torch_gradients_in_float64() -> None:
    problem = Problem(1, 4, 2, 5, 7, 3, "fp32", Mask("window", 2, 1))
    q, k, v = (x.detach().double().requires_grad_() for x in inputs(problem))
    assert torch.autograd.gradcheck(lambda *x: tiled_torch(*x, problem, return_lse=True), (q, k, v))

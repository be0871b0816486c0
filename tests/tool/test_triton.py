"""Our Triton kernels: everywhere in Triton's interpreter on tiny problems, and on the GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.triton import triton
from tests.tool.test_tiled_numerics import TOLERANCE, assert_close, inputs, reference

# Tile edges are multiples of 32 in fp32 and of 64 and 128 in 16 bits.
PROBLEMS = [
    Problem(2, 2, 1, 40, 70, 24, "fp32", CAUSAL),
    Problem(1, 1, 1, 70, 33, 40, "fp32", CAUSAL),  # empty rows
    Problem(1, 2, 2, 65, 97, 1, "fp32", Mask("window", 3, 2)),
    Problem(1, 1, 1, 97, 129, 16, "fp32", Mask("window", 40, None)),
    Problem(1, 1, 1, 31, 65, 65, "fp16", Mask("causal_top_left")),
    Problem(1, 1, 1, 96, 64, 32, "fp32", FULL),
    Problem(1, 4, 2, 130, 200, 64, "fp16", CAUSAL, scale=0.3),
    Problem(1, 1, 1, 130, 200, 16, "fp16", Mask("window", 100, 5), layout="bhsd"),
    Problem(0, 2, 2, 5, 5, 8, "fp32", CAUSAL),
]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MISSING = triton.why_unavailable("cuda")


def check(problem: Problem, device: str) -> None:
    q, k, v = (x.detach().requires_grad_() for x in inputs(problem, device))
    out, lse = triton(q, k, v, problem, return_lse=True)
    expected, expected_lse = reference(q, k, v, problem)
    assert (out.dtype, out.shape, lse.dtype) == (q.dtype, q.shape, torch.float32)
    # Weights and their gradients are rounded to the inputs' dtype before the second product.
    tolerance = 2 * TOLERANCE[problem.dtype]
    assert_close("out", out, expected, tolerance)
    assert_close("lse", lse, expected_lse, 2e-6)
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator).to(out)
    dlse = torch.randn(lse.shape, generator=generator).to(lse).masked_fill(lse.isneginf(), 0.0)
    grads = torch.autograd.grad((out, lse), (q, k, v), (dout, dlse))
    expected_grads = torch.autograd.grad((expected, expected_lse), (q, k, v), (dout.double(), dlse.double()))
    for name, got, want in zip(("dq", "dk", "dv"), grads, expected_grads, strict=True):
        assert_close(name, got, want.double(), 2 * tolerance)


def opcheck(device: str) -> None:
    q, k, v = (x.detach() for x in inputs(PROBLEMS[0], device))
    out, lse = triton(q, k, v, PROBLEMS[0], return_lse=True)
    mask = (0.5, -(2**63), 30)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.attn_tiled.triton_forward, [*leaves, *mask])
    torch.library.opcheck(torch.ops.attn_tiled.triton_backward, [out, q, k, v, out, lse, lse, *mask])


@pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own, see test_in_the_interpreter")
class TestInterpreted:
    @pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
    def test_outputs_and_gradients(self, problem: Problem) -> None:
        check(problem, "cpu")

    def test_wrong_arguments_are_named(self) -> None:
        q = torch.zeros(1, 2, 4, 8)
        with pytest.raises(RuntimeError, match=r"must agree in dtype and device; got q \[1, 2, 4, 8\] torch.float32"):
            triton(q, q.half(), q, Problem(1, 2, 2, 4, 4, 8, "fp32", FULL))

    def test_wrong_saved_tensors_are_named(self) -> None:
        q, lse = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4)
        triton(q, q, q, Problem(1, 2, 2, 4, 4, 8, "fp32", FULL))
        backward = torch.ops.attn_tiled.triton_backward
        with pytest.raises(RuntimeError, match=r"dout must be like q, .*; got \[1, 2, 4, 8\] torch.float16"):
            backward(q.half(), q, q, q, q, lse, None, 1.0, 0, 0)
        with pytest.raises(RuntimeError, match=r"dlse must be contiguous float32 .*; got \[1, 2, 5\]"):
            backward(q, q, q, q, q, lse, torch.zeros(1, 2, 5), 1.0, 0, 0)

    def test_opcheck(self) -> None:
        opcheck("cpu")

    def test_compiles_without_graph_breaks(self) -> None:
        problem = PROBLEMS[0]
        q, k, v = inputs(problem)
        eager = torch.autograd.grad(triton(q, k, v, problem).square().sum(), (q, k, v))
        compiled = torch.compile(lambda *x: triton(*x, problem), fullgraph=True, backend="aot_eager")
        for got, want in zip(torch.autograd.grad(compiled(q, k, v).square().sum(), (q, k, v)), eager, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
@pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed")
def test_in_the_interpreter() -> None:
    # Triton reads the variable when kernels are defined, so that a process has either compiled or interpreted ones.
    command = [sys.executable, "-m", "pytest", "-q", "-k", "Interpreted", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    inner = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert inner.returncode == 0, inner.stdout + inner.stderr


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or MISSING is not None, reason=MISSING or "interpreted")
class TestOnTheGPU:
    @pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
    def test_outputs_and_gradients(self, problem: Problem) -> None:
        check(problem, "cuda")

    @pytest.mark.parametrize("dtype", ["bf16", "fp16"])
    @pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
    def test_wide_rows(self, dtype: str, head_dim: int) -> None:
        check(Problem(1, 4, 2, 600, 700, head_dim, dtype, CAUSAL), "cuda")

    def test_opcheck(self) -> None:
        opcheck("cuda")

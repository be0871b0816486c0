"""Faults in the gradients; the forward pass of each is right."""

from __future__ import annotations

from dataclasses import replace

import torch

from attn_impls.problem import Problem
from tests.tool.faults.kernel import EVERYTHING, Grads, Kernel, Tensor
from tests.tool.faults.numerics import HALF, fp8


class DkWithoutBlock(Kernel):
    """dk lacks the last block of queries when there is more than one."""

    name = "dk without one block"

    def dk(self, dscores: Tensor, q: Tensor, problem: Problem) -> Tensor:
        rows = (problem.q_len - 1) // self.tile * self.tile or problem.q_len
        return super().dk(dscores[:, :, :rows], q[:, :, :rows], problem)


class DvFromFp8(Kernel):
    """dv is computed from weights rounded to fp8."""

    name = "dv from fp8 P"
    capabilities = HALF

    def low_for_dv(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        return fp8(weights)


class DvFromBf16(Kernel):
    """dv is computed from weights rounded to bf16, also for fp32 and fp16 inputs."""

    name = "dv from bf16 P"
    capabilities = replace(EVERYTHING, dtypes=frozenset({"fp32", "fp16"}))

    def low_for_dv(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        return weights.bfloat16().float()


class DqWithoutScale(Kernel):
    """dq lacks the factor of the scale."""

    name = "dq without scale"

    def add_dq(self, dq: Tensor, dscores: Tensor, k: Tensor, problem: Problem) -> Tensor:
        return dq + dscores @ k


class DqOverwritten(Kernel):
    """dq holds the last tile of keys alone: each tile overwrites, as a store in place of an atomic add does."""

    name = "dq overwritten"

    def add_dq(self, dq: Tensor, dscores: Tensor, k: Tensor, problem: Problem) -> Tensor:
        return super().add_dq(torch.zeros_like(dq), dscores, k, problem)


class DqInLowPrecision(Kernel):
    """dq is accumulated in the dtype of the inputs, tile by tile of 8 keys."""

    name = "dq accumulated in bf16"
    capabilities = HALF

    def add_dq(self, dq: Tensor, dscores: Tensor, k: Tensor, problem: Problem) -> Tensor:
        for a in range(0, k.shape[2], 8):
            dq = super().add_dq(dq, dscores[..., a : a + 8], k[:, :, a : a + 8], problem).bfloat16().float()
        return dq


class NoDelta(Kernel):
    """The row sum of dout * out is not subtracted."""

    name = "delta missing"

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        return torch.zeros_like(dout[..., :1])


class FirstHeadOfGroup(Kernel):
    """dk and dv hold the first query head of a group, not the sum."""

    name = "gradient of the first head of a group"

    def grouped(self, per_head: Tensor, problem: Problem) -> Tensor:
        return per_head.unflatten(1, (problem.kv_heads, -1))[:, :, 0]


class NoSoftcapSlope(Kernel):
    """The derivative of the softcap is left out."""

    name = "softcap derivative missing"

    def slope(self, slope: Tensor) -> Tensor:
        return torch.ones_like(slope)


class BackwardDiagonal(Kernel):
    """The backward pass shows each query one key more than the forward pass did, under a causal mask."""

    name = "backward diagonal off by one"

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, problem: Problem) -> Grads:
        return _Shifted().backward(dout, q, k, v, out, problem)


class IgnoresStrideZero(Kernel):
    """An upstream gradient that is expanded along every dimension is read as if it were dense: 0 beyond its storage."""

    name = "upstream gradient read as if dense"

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, problem: Problem) -> Grads:
        if not any(dout.stride()):
            read = torch.zeros(dout.shape, dtype=dout.dtype)
            read.view(-1)[:1] = dout.flatten()[:1]
            dout = read
        return super().backward(dout, q, k, v, out, problem)


class _Shifted(Kernel):
    def diagonals(self, problem: Problem) -> tuple[int | None, int | None]:
        low, high = super().diagonals(problem)
        return low, high + 1 if problem.mask.kind.startswith("causal") else high

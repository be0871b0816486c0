"""Faults in scale, softmax, precision and log-sum-exp."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from attn_impls.problem import Problem
from tests.tool.faults.kernel import EVERYTHING, Kernel, Tensor

BF16 = replace(EVERYTHING, dtypes=frozenset({"bf16"}))
HALF = replace(EVERYTHING, dtypes=frozenset({"bf16", "fp16"}))


def fp8(tensor: Tensor) -> Tensor:
    """Round to the nearest float8_e4m3fn, with 3 bits of fraction, and come back."""
    return tensor.to(torch.float8_e4m3fn).float()


class ScaleByDim(Kernel):
    """Logits are divided by d, not by its square root."""

    name = "scale 1/d"

    def scale(self, problem: Problem) -> float:
        return 1 / problem.head_dim if problem.scale is None else problem.scale


class ScaleIgnored(Kernel):
    """A custom scale is not used."""

    name = "custom scale ignored"

    def scale(self, problem: Problem) -> float:
        return 1 / math.sqrt(problem.head_dim)


class ScaleOff(Kernel):
    """The scale is 1 % too large."""

    name = "scale 1 % off"

    def scale(self, problem: Problem) -> float:
        return 1.01 * problem.softmax_scale


class ScaleOffBf16(ScaleOff):
    """The scale is 1 % too large, in a kernel that takes bf16 alone."""

    name = "scale 1 % off, bf16"
    capabilities = BF16


class GainOffBf16(Kernel):
    """The output is 1 % too large, in a kernel that takes bf16 alone."""

    name = "gain 1 % off, bf16"
    capabilities = BF16

    def divide(self, acc: Tensor, total: Tensor, v: Tensor) -> Tensor:
        return 1.01 * super().divide(acc, total, v)


class NoRescale(Kernel):
    """The accumulator is not rescaled when the maximum grows; the total is."""

    name = "missing rescale"

    def rescale(self, total: Tensor, acc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return total * factor, acc


class NoRescaleFromTheLast(NoRescale):
    """The accumulator is not rescaled when the maximum grows, in a kernel that visits the keys from the last one on."""

    name = "missing rescale, last tile first"

    def tiles(self, problem: Problem) -> list[slice]:
        return super().tiles(problem)[::-1]


class NoMaximum(Kernel):
    """The maximum is not subtracted, so that large logits overflow."""

    name = "max not subtracted"

    def top(self, top: Tensor, scores: Tensor) -> Tensor:
        return torch.zeros_like(top)


class FirstMaximum(Kernel):
    """The maximum of the first tile with a visible key is kept for all: later logits that are larger overflow."""

    name = "max of the first tile"

    def top(self, top: Tensor, scores: Tensor) -> Tensor:
        return torch.where(top.isneginf(), super().top(top, scores), top)


class Bf16Accumulator(Kernel):
    """The output is accumulated in bf16."""

    name = "bf16 accumulator"
    capabilities = HALF

    def accumulate(self, acc: Tensor, weights: Tensor, v: Tensor) -> Tensor:
        for a in range(0, v.shape[2], 8):  # as an instruction that adds 8 products at a time
            acc = (acc + weights[..., a : a + 8] @ v[:, :, a : a + 8]).bfloat16().float()
        return acc


class Fp16Accumulator(Kernel):
    """The output is accumulated in fp16, whatever the dtype."""

    name = "fp16 accumulator"

    def accumulate(self, acc: Tensor, weights: Tensor, v: Tensor) -> Tensor:
        for a in range(0, v.shape[2], 8):
            acc = (acc + weights[..., a : a + 8] @ v[:, :, a : a + 8]).half().float()
        return acc


class Bf16Total(Kernel):
    """The softmax's denominator is accumulated in bf16."""

    name = "bf16 denominator"
    capabilities = HALF

    def rescale(self, total: Tensor, acc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return (total * factor).bfloat16().float(), acc * factor


class Fp8Weights(Kernel):
    """The weights are rounded to fp8 before they meet the values."""

    name = "P in fp8"
    capabilities = HALF

    def low(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        return fp8(weights)


class RoughExp(Kernel):
    """The exponential is a polynomial with a relative error of 1e-3."""

    name = "exp off by 1e-3"

    def exp(self, x: Tensor) -> Tensor:
        # The error of a polynomial in the fraction of x / ln 2 oscillates.
        return torch.exp(x) * (1 + 1e-3 * torch.cos(2 * math.pi * (x / math.log(2)).nan_to_num(0.0, 0.0, 0.0)))


class HalfScores(Kernel):
    """Scores are rounded to fp16 before the softmax, also for fp32 inputs."""

    name = "scores in fp16"
    capabilities = replace(EVERYTHING, dtypes=frozenset({"fp32"}))

    def mask(self, logits: Tensor, columns: slice, problem: Problem) -> Tensor:
        return super().mask(logits.half().float(), columns, problem)


class LseInLog2(Kernel):
    """The log-sum-exp is in base 2."""

    name = "LSE in log2"

    def lse(self, top: Tensor, total: Tensor) -> Tensor:
        return super().lse(top, total) / math.log(2)


class LseWithoutMax(Kernel):
    """The log-sum-exp lacks the maximum that was subtracted."""

    name = "LSE without the max"

    def lse(self, top: Tensor, total: Tensor) -> Tensor:
        return total.log().squeeze(-1)

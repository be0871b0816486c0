"""What results are compared with: the truth, and what ``naive`` makes of the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from attn_impls.naive import naive
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.budget import TensorVerdict, judge_tensor
from pytest_attn.correctness.case import Tensors
from pytest_attn.correctness.oracle import Truth, solve
from pytest_attn.correctness.running import run

# Scores that naive, the yardstick, may hold at once: beyond, it runs head by head.
_MOST_SCORES = 2**28


@dataclass(frozen=True, slots=True, eq=False)
class Standard:
    """The truth of one problem, and the results that ``naive``, in the inputs' dtype, earns its budget with."""

    truth: Truth
    naive: Mapping[str, torch.Tensor]

    def judge(self, got: Mapping[str, torch.Tensor]) -> list[TensorVerdict]:
        """Compare results by name, each under its budget."""
        return [
            judge_tensor(name, tensor, self.naive[name.removesuffix(" with lse")], self.truth)
            for name, tensor in got.items()
        ]


def standard(problem: Problem, tensors: Tensors, *, gradients: bool) -> Standard:
    """Work out what results on ``tensors`` are compared with: ``out`` and ``lse``, or ``out, dq, dk, dv``."""
    truth = solve(problem, tensors, gradients=gradients)
    return Standard(truth, _yardstick(problem, tensors, Direction.BWD if gradients else Direction.FWD))


def judge_results(got: Mapping[str, torch.Tensor], problem: Problem, tensors: Tensors) -> list[TensorVerdict]:
    """Compare results by name with the oracle, each under the budget that ``naive`` earns on the same inputs."""
    return standard(problem, tensors, gradients="dq" in got).judge(got)


def _yardstick(problem: Problem, tensors: Tensors, direction: Direction) -> dict[str, torch.Tensor]:
    """Return what ``naive`` gives, computed in parts where its score matrix would be too large."""
    if problem.batch * problem.heads * problem.q_len * problem.kv_len <= _MOST_SCORES:
        return run(naive, problem, tensors, direction, with_lse=True)
    parts: list[dict[str, torch.Tensor]] = []
    for b in range(problem.batch):
        for h in range(problem.kv_heads):
            part, inputs = cut(problem, tensors, b, h)
            parts.append(run(naive, part, inputs, direction, with_lse=True))
    whole: dict[str, torch.Tensor] = {}
    for name in parts[0]:
        joined = torch.cat([part[name] for part in parts], dim=1)  # [1, batch * heads, ...]
        whole[name] = joined.unflatten(1, (problem.batch, -1)).squeeze(0)
    return whole


def cut(problem: Problem, tensors: Tensors, batch: int, kv_head: int) -> tuple[Problem, Tensors]:
    """Return the part of a problem that is one key head of one batch, with the query heads that read it, as views."""
    group = problem.heads // problem.kv_heads
    part = replace(problem, batch=1, heads=group, kv_heads=1)

    def of(tensor: torch.Tensor) -> torch.Tensor:
        return cut_result(problem, tensor, batch, kv_head)

    return part, Tensors(of(tensors.q), of(tensors.k), of(tensors.v), of(tensors.dout))


def cut_result(problem: Problem, tensor: torch.Tensor, batch: int, kv_head: int) -> torch.Tensor:
    """Return the part of ``tensor``, ``[batch, heads or kv_heads, ...]``, that belongs to one key head of one batch."""
    size = tensor.shape[1] // problem.kv_heads
    return tensor.detach()[batch : batch + 1, kv_head * size : (kv_head + 1) * size]

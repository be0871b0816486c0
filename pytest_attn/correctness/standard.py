"""What results are compared with: the truth, and what ``naive`` makes of the same inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from attn_impls.implementation import Implementation
from attn_impls.naive import naive
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.budget import TensorBudget, TensorVerdict
from pytest_attn.correctness.case import Tensors
from pytest_attn.correctness.oracle import Truth, solve
from pytest_attn.correctness.running import run

# Scores that naive, the yardstick, may hold at once: beyond, it runs head by head.
_MOST_SCORES = 2**28
# Up to here hundreds of small kernels take longer than a CPU, the more so where several processes share the device.
_MOST_SCORES_FOR_THE_HOST = 2**16


def _scaled(by_q: float, by_k: float) -> Implementation:
    """Return ``naive`` with these powers of the softmax scale on q and on k, in place of the scale on the scores."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, **kwargs: Any) -> Any:
        scale = problem.softmax_scale
        return naive(q * scale**by_q, k * scale**by_k, v, replace(problem, scale=1.0), **kwargs)

    return replace(naive, fn=attention)


#: Other ways to write ``naive``, which round otherwise where scores are rounded to 16 bits; see :mod:`.budget`.
OTHER_ORDERS = (_scaled(1, 0), _scaled(0, 1), _scaled(0.5, 0.5))


@dataclass(frozen=True, slots=True, eq=False)
class Standard:
    """The truth of one problem, and the results, in the inputs' dtype, that ``naive`` earns the budget with.

    ``otherwise`` gives the results of ``naive`` written otherwise: :data:`OTHER_ORDERS` of the dtype, or none.
    """

    truth: Truth
    naive: Mapping[str, torch.Tensor]
    otherwise: Callable[[], Sequence[Mapping[str, torch.Tensor]]]
    _budgets: dict[str, TensorBudget] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors; budgets add less than as many once they are worked out."""
        truth = self.truth
        found = (truth.exact, truth.noise, truth.scatter, truth.by_log_scale, truth.by_exp, self.naive)
        return sum(tensor.nbytes for tensors in found for tensor in tensors.values())

    def judge(self, got: Mapping[str, torch.Tensor]) -> list[TensorVerdict]:
        """Compare results by name, each under its budget."""
        return [self._judge(name, tensor) for name, tensor in got.items()]

    def _judge(self, name: str, tensor: torch.Tensor) -> TensorVerdict:
        quantity = name.removesuffix(" with lse")
        if quantity not in self._budgets:
            self._budgets[quantity] = TensorBudget(quantity, [self.naive[quantity]], self.truth)
        verdict = self._budgets[quantity].judge(name, tensor)
        # The larger of several bounds matters to those alone who are above the first.
        if verdict.ok or verdict.nonfinite or not (others := self.otherwise()):
            return verdict
        every = [self.naive[quantity], *(other[quantity] for other in others)]
        return TensorBudget(quantity, every, self.truth).judge(name, tensor)


def standard(problem: Problem, tensors: Tensors, *, gradients: bool, judge_on: torch.device | None = None) -> Standard:
    """Work out what results on ``tensors`` are compared with: ``out`` and ``lse``, or ``out, dq, dk, dv``.

    ``naive`` runs where the tensors are; the truth is worked out on ``judge_on``, by default there too. The tensors are
    not to change before the last comparison.
    """
    judge_on = judge_on or tensors.q.device
    direction = Direction.BWD if gradients else Direction.FWD

    def yardstick(order: Implementation) -> dict[str, torch.Tensor]:
        return {name: x.to(judge_on) for name, x in _yardstick(order, problem, tensors, direction).items()}

    truth = solve(problem, tensors.to(judge_on), gradients=gradients)
    return earned_by(yardstick, problem, truth)


def earned_by(results: Callable[[Implementation], dict[str, torch.Tensor]], problem: Problem, truth: Truth) -> Standard:
    """Return the standard whose budget is earned by the ``results`` of ``naive`` in its orders."""
    orders = () if problem.dtype == "fp32" else OTHER_ORDERS
    return Standard(truth, results(naive), functools.cache(lambda: [results(order) for order in orders]))


def judge_results(got: Mapping[str, torch.Tensor], problem: Problem, tensors: Tensors) -> list[TensorVerdict]:
    """Compare results by name with the oracle, each under the budget that ``naive`` earns on the same inputs."""
    judge_on = host_or_device(problem, tensors.q.device)
    found = standard(problem, tensors, gradients="dq" in got, judge_on=judge_on)
    return found.judge({name: tensor.to(judge_on) for name, tensor in got.items()})


def host_or_device(problem: Problem, device: torch.device) -> torch.device:
    """Return where the truth of a problem on ``device`` is worked out sooner."""
    scores = problem.batch * problem.heads * problem.q_len * problem.kv_len
    return torch.device("cpu") if scores <= _MOST_SCORES_FOR_THE_HOST else device


def _yardstick(
    order: Implementation, problem: Problem, tensors: Tensors, direction: Direction
) -> dict[str, torch.Tensor]:
    """Return what ``naive`` in one order gives, computed in parts where its score matrix would be too large."""
    if problem.batch * problem.heads * problem.q_len * problem.kv_len <= _MOST_SCORES:
        return run(order, problem, tensors, direction, with_lse=True)
    parts: list[dict[str, torch.Tensor]] = []
    for b in range(problem.batch):
        for h in range(problem.kv_heads):
            part, inputs = cut(problem, tensors, b, h)
            parts.append(run(order, part, inputs, direction, with_lse=True))
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

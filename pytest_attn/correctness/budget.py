"""The error budget: how far an implementation may be from the truth. The rule stands here and nowhere else.

For each tensor (``out``, ``lse``, ``dq``, ``dk``, ``dv``) with float64 truth ``t``, result ``x`` and, as ``n``, the
result of ``naive`` in the same dtype on the same inputs::

    |x - t|      <=  2 * max|n - t|  +  FLOOR * noise          for every element
    rms(x - t)   <=  2 * rms(n - t)  +  FLOOR * rms(noise)
    x is finite wherever t is

The first term is flash-attention's rule: no worse than twice plain PyTorch in the same precision
(Dao-AILab/flash-attention, ``tests/test_flash_attn.py``). Alone it fails good kernels where ``naive`` happens to be
exact (one key, equal keys) and its error is 0. The second term covers that: ``noise`` is the rounding error that the
element cannot avoid, one rounding of each intermediate to the dtype and float32 accumulation (see
:mod:`pytest_attn.correctness.oracle`), so it is a few ulp *of that element's terms*, not of the largest element.

What it can see depends on the dtype. A softmax scale that is 1 % off is hundreds of budgets in fp32 and fails in fp16;
in bf16, whose naive form rounds every score to 0.4 %, it hides. A kernel that takes bf16 alone is held to bf16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pytest_attn.correctness.oracle import Truth

NAIVE_FACTOR = 2.0
FLOOR = 4.0


@dataclass(frozen=True, slots=True)
class TensorVerdict:
    """How one tensor did: ``ratio`` is error over budget where that is largest, so that <= 1 passes.

    ``index`` is where, ``got`` and ``want`` the values there, ``error`` their distance and ``budget`` the bound;
    ``rms_ratio`` is the same for the root mean square. ``nonfinite`` counts values that are not finite but should be.
    """

    name: str
    ratio: float
    rms_ratio: float
    index: tuple[int, ...]
    got: float
    want: float
    error: float
    budget: float
    nonfinite: int

    @property
    def ok(self) -> bool:
        """Whether the tensor keeps within the budget."""
        return self.nonfinite == 0 and self.ratio <= 1 and self.rms_ratio <= 1


def judge_tensor(name: str, got: torch.Tensor, naive: torch.Tensor, truth: Truth) -> TensorVerdict:
    """Compare ``got`` with ``truth.exact[name]`` under the budget that ``naive``, of the same shape, earns."""
    quantity = name.removesuffix(" with lse")
    exact, noise = truth.exact[quantity], truth.noise[quantity]
    if exact.numel() == 0:
        return TensorVerdict(name, 0.0, 0.0, (), math.nan, math.nan, 0.0, 0.0, 0)
    finite = exact.isfinite()
    # Where the truth is -inf (the LSE of a row without keys) only equality counts.
    error = _distance(got, exact, finite)
    yardstick = _distance(naive, exact, finite).nan_to_num(0.0, 0.0, 0.0)
    bound = NAIVE_FACTOR * yardstick.max() + FLOOR * noise
    bad = ~error.isfinite()
    ratio = (error / bound).masked_fill(bad, math.inf)
    worst = int(ratio.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), ratio.shape))
    rms_bound = NAIVE_FACTOR * _rms(yardstick) + FLOOR * _rms(noise)
    return TensorVerdict(
        name,
        ratio=float(ratio[index]),
        rms_ratio=_rms(error) / rms_bound if not bool(bad.any()) else math.inf,
        index=index,
        got=float(got.detach()[index]),
        want=float(exact[index]),
        error=float(error[index]),
        budget=float(bound[index]),
        nonfinite=int(bad.sum()),
    )


def _distance(got: torch.Tensor, exact: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    got = got.detach().double()
    apart = (got - exact).abs()
    return torch.where(finite, apart, torch.where(got == exact, 0.0, math.nan))


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())

"""The float64 oracle: forward, LSE and gradients by explicit formulas, and how ill-conditioned each element is.

It shares no code with any implementation, and does not use autograd: the gradients are those of FlashAttention
(Dao et al. 2022, arXiv:2205.14135, appendix B.2), written out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attn_impls.problem import Problem
from pytest_attn.correctness.case import Tensors


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Float64 results by name (``out, lse`` and, when asked for, ``dq, dk, dv``), and the noise of each element.

    ``noise[name]`` has the shape of ``exact[name]`` and estimates, for inputs of the case's dtype, the error in that
    element when every intermediate is rounded to the dtype once and accumulated in float32.
    """

    exact: dict[str, torch.Tensor]
    noise: dict[str, torch.Tensor]


# Vectorised exp in use: PyTorch's CPU flash kernel allows itself 20 ulp, CUDA's ex2.approx 2.
_EXP_ULP = 4


def solve(problem: Problem, tensors: Tensors, *, gradients: bool) -> Truth:
    """Compute the truth for ``tensors`` in float64, on their device.

    Memory: about eight float64 matrices of ``[batch, heads, q_len, kv_len]``.
    """
    group = problem.heads // problem.kv_heads
    q, dout = (t.detach().double() for t in (tensors.q, tensors.dout))
    k, v = (t.detach().double().repeat_interleave(group, dim=1) for t in (tensors.k, tensors.v))
    scale, cap = problem.softmax_scale, problem.softcap
    finfo, finfo32 = torch.finfo(tensors.q.dtype), torch.finfo(torch.float32)
    unit = finfo.eps / 2  # one rounding to the dtype
    unit32 = finfo32.eps / 2  # one rounding in the accumulator

    raw = scale * (q @ k.mT)
    squash = None if cap is None else torch.tanh(raw / cap)
    logits = raw if squash is None or cap is None else cap * squash
    mask = _visible(problem, q.device)
    logits = logits.masked_fill(~mask, float("-inf"))
    empty = ~mask.any(dim=-1)
    lse = logits.logsumexp(dim=-1)
    weights = torch.exp(logits - lse.masked_fill(empty, 0.0).unsqueeze(-1)).masked_fill(~mask, 0.0)
    out = weights @ v

    # A logit is a float32 sum of head_dim products, whose error grows as the square root of their number (Higham and
    # Mary 2019, doi:10.1137/18M1226312), half of it where several accumulators share the sum. That absolute error is a
    # relative error of the weight it becomes; a backward that computes the logits again, in another order, makes it
    # twice. So is the rounding of exp's argument, which grows with the distance from the row's maximum, and exp's own.
    growth = max(1.0, problem.head_dim**0.5 / 2)
    logit_size = (scale * (q.abs() @ k.abs().mT)).masked_fill(~mask, 0.0).amax(dim=-1, keepdim=True)
    logit_noise = growth * unit32 * logit_size
    argument = (logits - lse.unsqueeze(-1)).abs().masked_fill(~mask, 0.0)
    relative = unit + 2 * logit_noise + unit32 * (_EXP_ULP + argument)
    magnitude = (relative * weights) @ v.abs()
    exact = {"out": out, "lse": lse}
    noise = {
        "out": magnitude + unit * out.abs(),
        "lse": logit_noise.squeeze(-1) + unit32 * (1 + _EXP_ULP + lse.abs().masked_fill(empty, 0.0)),
    }
    if gradients:
        delta = (dout * out).sum(dim=-1, keepdim=True)
        dlogits = weights * (dout @ v.mT - delta)
        # dP and delta are sums of products of rounded numbers, and their difference may cancel.
        spread = dout.abs() @ v.abs().mT + (dout.abs() * (weights @ v.abs())).sum(dim=-1, keepdim=True)
        dlogits_noise = relative * weights * spread
        if squash is not None:
            dlogits, dlogits_noise = dlogits * (1 - squash.square()), dlogits_noise * (1 - squash.square())
        exact |= {
            "dq": scale * (dlogits @ k),
            "dk": _grouped(scale * (dlogits.mT @ q), group),
            "dv": _grouped(weights.mT @ dout, group),
        }
        noise |= {
            "dq": scale * (dlogits_noise @ k.abs()),
            "dk": _grouped(scale * (dlogits_noise.mT @ q.abs()), group),
            "dv": _grouped((relative * weights).mT @ dout.abs(), group),
        }
        for name in ("dq", "dk", "dv"):
            noise[name] += unit * exact[name].abs()
    # No result can be nearer than the dtype's smallest step.
    for name, tensor in noise.items():
        tensor += finfo32.smallest_normal if name == "lse" else finfo.smallest_normal * finfo.eps
    return Truth(exact, noise)


def _visible(problem: Problem, device: torch.device) -> torch.Tensor:
    """Return bool ``[q_len, kv_len]``, from the definition of a mask's diagonals."""
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    query = torch.arange(problem.q_len, device=device).unsqueeze(1)
    diagonal = torch.arange(problem.kv_len, device=device) - query
    mask = torch.ones_like(diagonal, dtype=torch.bool)
    if low is not None:
        mask &= diagonal >= low
    if high is not None:
        mask &= diagonal <= high
    return mask


def _grouped(per_query_head: torch.Tensor, group: int) -> torch.Tensor:
    """Sum the gradients of the query heads that share a key head."""
    batch, heads, length, head_dim = per_query_head.shape
    return per_query_head.reshape(batch, heads // group, group, length, head_dim).sum(dim=2)

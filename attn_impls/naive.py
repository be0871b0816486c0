"""``naive``: Algorithm 0, the whole score matrix in memory.

The baseline that every speed-up is quoted against, and, in the same dtype, the yardstick of the error budget.
"""

from __future__ import annotations

from typing import Any

import torch

from attn_impls.implementation import Capabilities, implementation
from attn_impls.masks import visible
from attn_impls.problem import MASK_KINDS, Problem


@implementation(
    "naive",
    capabilities=Capabilities(
        masks=frozenset(MASK_KINDS),
        gqa=True,
        rectangular=True,
        empty_rows=True,
        softcap=True,
        scale=True,
        returns_lse=True,
        traceable=True,
        capturable=True,
    ),
    kernels="(?i)softmax",
    kernels_share=0.0,
)
def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, *, return_lse: bool = False) -> Any:
    """Plain PyTorch: two matrix products and a softmax, every score in memory (Algorithm 0)."""
    group = problem.heads // problem.kv_heads
    if group > 1:
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(-2, -1)) * problem.softmax_scale
    if problem.softcap is not None:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    mask = visible(problem, q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    if mask is not None and problem.mask.has_empty_rows(problem.q_len, problem.kv_len):
        # The softmax of a row of -inf is NaN; by convention such a row weighs nothing.
        weights = weights.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    out = weights @ v
    if not return_lse:
        return out
    return out, scores.float().logsumexp(dim=-1)

"""``flex``: FlexAttention, compiled.

FlexAttention is fast only under ``torch.compile``. After a number of shapes torch.compile gives up and runs it eagerly,
with a warning: 50 times slower and with the whole score matrix in memory. Here that is an error instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attn_impls.implementation import Capabilities, HeadDims, implementation
from attn_impls.problem import MASK_KINDS, Mask, Problem

# Enough for any grid in one process; beyond it torch.compile raises rather than falls back.
_MOST_SHAPES = 4096


def _why_not() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "torch.compile needs triton, which is not installed"
    return None


def _rules(problem: Problem, device_type: str) -> str | None:
    # Short queries go to a decoding kernel that packs a group of heads into one tile of rows. Beyond 128 rows inductor
    # finds no kernel at all and raises NoValidChoicesError (seen with torch 2.11 on an H100).
    rows = problem.q_len * problem.heads // problem.kv_heads
    if problem.heads != problem.kv_heads and problem.q_len < 128 < rows:
        return f"packs at most 128 rows of grouped heads for q_len < 128, not {rows}"
    return None


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., torch.Tensor]:
    # Static shapes: what a user who compiles for one model gets, and a graph that never changes under a timer.
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@lru_cache(maxsize=64)
def _block_mask(mask: Mask, q_len: int, kv_len: int, device: torch.device) -> BlockMask | None:
    low, high = mask.diagonals(q_len, kv_len)
    if low is None and high is None:
        return None
    lowest = -q_len if low is None else low

    def visible(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        diagonal = key - query
        if high is None:
            return diagonal >= lowest
        return diagonal <= high if low is None else (diagonal >= low) & (diagonal <= high)

    return create_block_mask(visible, None, None, q_len, kv_len, device=str(device))


@lru_cache(maxsize=64)
def _softcap(cap: float | None) -> Callable[..., torch.Tensor] | None:
    if cap is None:
        return None

    def capped(score: torch.Tensor, batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@implementation(
    "flex",
    capabilities=Capabilities(
        # On a CPU it has no backward and compiles C++ for each shape.
        devices=frozenset({"cuda"}),
        head_dims=HeadDims(16, 256),
        masks=frozenset(MASK_KINDS),
        gqa=True,
        rectangular=True,
        empty_rows=True,
        softcap=True,
        scale=True,
        compiles_per_shape=True,
        also=_rules,
        min_compute_capability=(8, 0),
    ),
    probe=_why_not,
    how_to_get="run on a CUDA device with triton installed",
    kernels="flex_attention",
)
def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    """FlexAttention under torch.compile; never its eager fall-back."""
    with torch._dynamo.config.patch(
        recompile_limit=_MOST_SHAPES,
        accumulated_recompile_limit=_MOST_SHAPES,
        fail_on_recompile_limit_hit=True,
    ):
        return _compiled()(
            q,
            k,
            v,
            score_mod=_softcap(problem.softcap),
            block_mask=_block_mask(problem.mask, problem.q_len, problem.kv_len, q.device),
            scale=problem.softmax_scale,
            enable_gqa=problem.kv_heads != problem.heads,
        )

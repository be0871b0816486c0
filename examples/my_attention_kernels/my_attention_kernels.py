"""``my-chunked``: attention over a few queries at a time, so that only their scores are in memory."""

from __future__ import annotations

import torch

from attn_impls import Capabilities, Problem, implementation

CHUNK = 128  # queries


@implementation(
    "my-chunked",
    capabilities=Capabilities(
        masks=frozenset({"full", "causal"}),
        rectangular=True,
        scale=True,
        traceable=True,
    ),
    version=lambda: "my-attention-kernels 0.1.0",
)
def chunked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Plain PyTorch in chunks of queries, in float32."""
    dtype = q.dtype
    q, k, v = q.float() * problem.softmax_scale, k.float(), v.float()
    keys = torch.arange(problem.kv_len, device=q.device)
    # Bottom-right aligned: the last query sees all keys.
    last_visible = torch.arange(problem.q_len, device=q.device) + (problem.kv_len - problem.q_len)
    rows = []
    for start in range(0, problem.q_len, CHUNK):
        chunk = slice(start, start + CHUNK)
        scores = q[:, :, chunk] @ k.mT
        if problem.mask.kind == "causal":
            scores = scores.masked_fill(keys > last_visible[chunk, None], float("-inf"))
        rows.append(scores.softmax(dim=-1) @ v)
    return torch.cat(rows, dim=2).to(dtype)

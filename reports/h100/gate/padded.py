"""What is gated beside the library's kernels: FlashAttention through SDPA, whose launch can hold work in vain.

The queries are copied with ``PADDING`` heads more, repeated from the first ones. The base's launch leaves these out;
the commit with the planted slowdown sets ``COMPUTED = PADDING``, so that the same kernel, in the same launch, computes
them too: one head beside twenty is 5 % more blocks. The result is cut, and right on both sides.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attn_impls import Capabilities, Problem
from attn_impls.sdpa import sdpa_flash

PADDING = 1
COMPUTED = 0


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    padded = torch.cat([q, q[:, :PADDING]], dim=1)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = scaled_dot_product_attention(
            padded[:, : problem.heads + COMPUTED], k, v, scale=problem.softmax_scale, enable_gqa=True
        )
    return out[:, : problem.heads]


def _one_kv_head(problem: Problem, device_type: str) -> str | None:
    return None if problem.kv_heads == 1 else "shares one key head among all query heads"


attention.capabilities = Capabilities(masks=frozenset({"full"}), gqa=True, also=_one_kv_head)  # type: ignore[attr-defined]
attention.kernels = sdpa_flash.kernels  # type: ignore[attr-defined]

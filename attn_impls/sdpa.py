"""``sdpa-*``: ``torch.nn.functional.scaled_dot_product_attention`` with its backend pinned.

Left to itself, SDPA picks a backend and falls back in silence. With one backend allowed it raises instead when that
backend cannot run the problem, so a number under one of these names belongs to that kernel.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attn_impls.implementation import AttentionFn, Capabilities, HeadDims, Implementation
from attn_impls.masks import visible
from attn_impls.problem import MASK_KINDS, Problem

_HALF = frozenset({"bf16", "fp16"})
_SQUARE_MASKS = frozenset({"full", "causal", "causal_top_left"})


def _pinned(backend: SDPBackend) -> AttentionFn:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        # PyTorch's is_causal is aligned top-left, which is every causal mask when the lengths are equal.
        causal = problem.mask.kind == "causal_top_left" or (
            problem.mask.kind == "causal" and problem.q_len == problem.kv_len
        )
        mask = None if causal else visible(problem, q.device)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=causal,
                scale=problem.softmax_scale,
                enable_gqa=problem.kv_heads != problem.heads,
            )

    return attention


def _flash_rules(problem: Problem, device_type: str) -> str | None:
    if device_type == "cpu":
        return None
    if problem.dtype not in _HALF:
        return f"does not take {problem.dtype} on CUDA"
    if problem.head_dim > 256:
        return f"takes head_dim up to 256 on CUDA, not {problem.head_dim}"
    if problem.mask.kind not in _SQUARE_MASKS:
        return f"has no {problem.mask.kind} mask on CUDA"
    if problem.mask.kind != "full" and problem.q_len != problem.kv_len:
        return "needs q_len == kv_len under a causal mask on CUDA"
    return None


def _no_bottom_right(problem: Problem) -> str | None:
    if problem.mask.kind == "causal" and problem.q_len != problem.kv_len:
        return "aligns a causal mask top-left only, and q_len != kv_len"
    return None


def _efficient_rules(problem: Problem, device_type: str) -> str | None:
    step = 4 if problem.dtype == "fp32" else 8
    if problem.head_dim % step:
        return f"takes head_dim in multiples of {step} in {problem.dtype}, not {problem.head_dim}"
    return _no_bottom_right(problem)


def _cudnn_rules(problem: Problem, device_type: str) -> str | None:
    if problem.batch == 0:
        return "gives no tensor for an empty batch"
    if problem.kv_len == 1:
        return "does not take kv_len 1"
    if problem.head_dim > 128 and torch.cuda.get_device_capability() < (9, 0):
        return f"takes head_dim up to 128 before compute capability 9.0, not {problem.head_dim}"
    return _no_bottom_right(problem)


def _needs_cuda() -> str | None:
    return None if torch.cuda.is_available() else "needs a CUDA device"


def _needs_cudnn() -> str | None:
    if torch.cuda.is_available() and not torch.backends.cudnn.is_available():
        return "this torch was built without cuDNN"
    return _needs_cuda()


sdpa_math = Implementation(
    "sdpa-math",
    _pinned(SDPBackend.MATH),
    Capabilities(
        masks=frozenset(MASK_KINDS),
        gqa=True,
        rectangular=True,
        empty_rows=True,
        scale=True,
        traceable=True,
        capturable=True,
    ),
    summary="SDPA's unfused reference path",
    kernels="(?i)softmax",
    kernels_share=0.0,
)

sdpa_flash = Implementation(
    "sdpa-flash",
    _pinned(SDPBackend.FLASH_ATTENTION),
    Capabilities(
        masks=frozenset(MASK_KINDS),
        gqa=True,
        rectangular=True,
        empty_rows=True,
        scale=True,
        traceable=True,
        capturable=True,
        min_compute_capability=(8, 0),
        also=_flash_rules,
    ),
    summary="SDPA's FlashAttention-2 on CUDA, its own flash kernel on the CPU",
    kernels="pytorch_flash::|flash_attention_for_cpu",
)

sdpa_efficient = Implementation(
    "sdpa-efficient",
    _pinned(SDPBackend.EFFICIENT_ATTENTION),
    Capabilities(
        devices=frozenset({"cuda"}),
        masks=_SQUARE_MASKS,
        rectangular=True,
        scale=True,
        traceable=True,
        capturable=True,
        min_compute_capability=(5, 0),
        also=_efficient_rules,
    ),
    summary="SDPA's memory-efficient kernel (from xFormers, CUTLASS)",
    kernels="fmha_cutlass",
    probe=_needs_cuda,
)

sdpa_cudnn = Implementation(
    "sdpa-cudnn",
    _pinned(SDPBackend.CUDNN_ATTENTION),
    Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=_HALF,
        head_dims=HeadDims(8, 256, multiple_of=8),
        masks=_SQUARE_MASKS,
        gqa=True,
        rectangular=True,
        scale=True,
        # Not traceable: compiled by torch 2.11, its gradients are NaN in part on b2-h4-kv4-q161-k161-d64-bf16-causal.
        capturable=True,
        also=_cudnn_rules,
        min_compute_capability=(8, 0),
    ),
    summary="SDPA's cuDNN kernel",
    kernels="cudnn",
    probe=_needs_cudnn,
    how_to_get="install a torch that was built with cuDNN",
)

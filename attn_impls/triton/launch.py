"""Runs the Triton kernels on tensors: block sizes, grids, results. Importing this imports Triton."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch
import triton

from attn_impls.tiled.ops import empty_in_order_of
from attn_impls.triton.backward_kernels import (
    attn_triton_backward_delta,
    attn_triton_backward_kv,
    attn_triton_backward_q,
)
from attn_impls.triton.forward_kernel import attn_triton_forward

Tensor = torch.Tensor


class _Blocks(NamedTuple):
    """Queries and keys a block, warps, and stages of the software pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


def _forward_blocks(dtype: torch.dtype, width: int) -> _Blocks:
    # fp32 products are done without tensor cores (TF32 would lose 13 bits), so that operands fill the registers.
    if dtype == torch.float32:
        return _Blocks(32, 32, 4, 1)
    return _Blocks(128, 64, 8, 2) if width <= 128 else _Blocks(64, 32, 8, 2)


def _backward_blocks(dtype: torch.dtype, width: int) -> _Blocks:
    if dtype == torch.float32:
        return _Blocks(32, 32, 4, 1)
    return _Blocks(64, 64, 8, 2) if width <= 128 else _Blocks(32, 32, 8, 1)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return ``(out, lse)`` as :class:`attn_impls.tiled.ops.Family` defines them.

    Raises ``RuntimeError`` for shapes, dtypes and strides that the kernels do not take.
    """
    _check(q, k, v, scale)
    batch, heads, q_len, head_dim = q.shape
    kv_len = k.shape[2]
    out = empty_in_order_of(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    width = _width(head_dim)
    blocks = _forward_blocks(q.dtype, width)
    _launch(
        attn_triton_forward,
        triton.cdiv(q_len, blocks.queries) * heads * batch,
        blocks,
        (q, k, v, out, lse, *_strides(q, k, v, out), heads, heads // k.shape[1], q_len, kv_len, head_dim),
        (scale * math.log2(math.e), *_near(low, high, q_len, kv_len)),
        QUERIES=blocks.queries,
        KEYS=blocks.keys,
        WIDTH=width,
        ALIGNED=_aligned(q, k, v, out),
    )
    return out, lse


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dlse: Tensor | None,
    scale: float,
    low: int,
    high: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(dq, dk, dv)``; the same bits each time, because no two blocks write one number.

    Raises ``RuntimeError`` as :func:`forward`, and for ``dout`` and ``out`` unlike ``q`` or ``lse`` and ``dlse`` that
    are not fp32 ``[batch, heads, q_len]``.
    """
    _check(q, k, v, scale)
    _check_saved(q, dout, out, lse, dlse)
    batch, heads, q_len, head_dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    dq, dk, dv = (empty_in_order_of(x) for x in (q, k, v))
    delta = torch.empty_like(lse)
    width = _width(head_dim)
    aligned = _aligned(q, k, v, dout, out, dq, dk, dv)
    blocks = _backward_blocks(q.dtype, width)
    _launch(
        attn_triton_backward_delta,
        triton.cdiv(q_len, blocks.queries) * heads * batch,
        blocks,
        (dout, out, dlse, delta, *_strides(dout, out), heads, q_len, head_dim),
        HAS_DLSE=dlse is not None,
        QUERIES=blocks.queries,
        WIDTH=width,
        ALIGNED=aligned,
    )
    common = (heads // kv_heads, q_len, kv_len, head_dim, scale, *_near(low, high, q_len, kv_len))
    sizes = {"QUERIES": blocks.queries, "KEYS": blocks.keys, "WIDTH": width, "ALIGNED": aligned}
    _launch(
        attn_triton_backward_kv,
        triton.cdiv(kv_len, blocks.keys) * kv_heads * batch,
        blocks,
        (q, k, v, dout, lse, delta, dk, dv, *_strides(q, k, v, dout, dk, dv), kv_heads, *common),
        **sizes,
    )
    _launch(
        attn_triton_backward_q,
        triton.cdiv(q_len, blocks.queries) * heads * batch,
        blocks,
        (q, k, v, dout, lse, delta, dq, *_strides(q, k, v, dout, dq), heads, *common),
        **sizes,
    )
    return dq, dk, dv


def _launch(kernel: Any, programs: int, blocks: _Blocks, *arguments: tuple[Any, ...], **constants: int | bool) -> None:
    """Queue ``kernel`` on the current stream of its tensors' device; Triton by itself uses the current device."""
    if programs == 0:
        return
    flat = [value for part in arguments for value in part]
    device = flat[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*flat, **constants, num_warps=blocks.warps, num_stages=blocks.stages)


def _width(head_dim: int) -> int:
    return max(16, int(triton.next_power_of_2(head_dim)))


def _aligned(*tensors: Tensor) -> bool:
    """Tell whether head_dim and all strides are multiples of 16, so that rows can be read 16 bytes at a time."""
    return all(number % 16 == 0 for x in tensors for number in (x.shape[3], *x.stride()[:3]))


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _near(low: int, high: int, q_len: int, kv_len: int) -> tuple[int, int]:
    """Pull the diagonals in to the matrix, so that they are 32-bit numbers; every pair stays as visible as it was."""
    return min(max(low, -q_len), kv_len), max(min(high, kv_len), -q_len)


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    def must(holds: bool, what: str) -> None:
        if not holds:
            shapes = ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in zip("qkv", (q, k, v), strict=True))
            raise RuntimeError(f"{what}; got {shapes}, scale {scale}")

    must(q.dim() == k.dim() == v.dim() == 4, "q, k and v must be [batch, heads, seq, head_dim]")
    must(q.dtype in (torch.float32, torch.bfloat16, torch.float16), "q must be float32, bfloat16 or float16")
    must(q.dtype == k.dtype == v.dtype and q.device == k.device == v.device, "q, k, v must agree in dtype and device")
    must(k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3], "the shapes do not fit")
    must(min(q.shape[1:]) > 0 and min(k.shape[1:]) > 0, "q and k must not be empty but for the batch")
    must(q.shape[1] % k.shape[1] == 0, "the heads of k must divide the heads of q")
    must(q.shape[3] <= 256, "head_dim must be at most 256")
    must(0 < scale < math.inf, "scale must be positive and finite")
    must(all(x.stride(3) == 1 or x.shape[3] == 1 for x in (q, k, v)), "rows must be contiguous")


def _check_saved(q: Tensor, dout: Tensor, out: Tensor, lse: Tensor, dlse: Tensor | None) -> None:
    for name, x in (("dout", dout), ("out", out)):
        like = x.shape == q.shape and x.dtype == q.dtype and x.device == q.device
        if not (like and (x.stride(3) == 1 or x.shape[3] == 1)):
            raise RuntimeError(
                f"{name} must be like q, its rows contiguous; got {list(x.shape)} {x.dtype} with strides {x.stride()}"
            )
    for name, x in (("lse", lse), ("dlse", lse if dlse is None else dlse)):
        fits = x.shape == q.shape[:3] and x.dtype == torch.float32 and x.device == q.device
        if not (fits and x.is_contiguous()):
            raise RuntimeError(
                f"{name} must be contiguous float32 [batch, heads, q_len] on q's device; got {list(x.shape)} {x.dtype}"
            )

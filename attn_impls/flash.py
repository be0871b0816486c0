"""``flash-attn`` and ``flash-attn-4``: the FlashAttention packages, imported when they are used."""

from __future__ import annotations

import functools
from importlib import metadata
from importlib.util import find_spec
from typing import Any, cast

import torch

from attn_impls.implementation import Capabilities, HeadDims, implementation
from attn_impls.problem import Problem

_HALF = frozenset({"bf16", "fp16"})


def _missing(module: str, package: str) -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    try:
        found = find_spec(module) is not None
    except ImportError:  # the parent package is missing or broken
        found = False
    return None if found else f"the package {package} is not installed"


@functools.cache
def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


def _window(problem: Problem) -> tuple[int | None, int | None]:
    """Return the window as flash-attn counts it, bottom-right aligned, ``None`` for unbounded."""
    mask = problem.mask
    return (mask.left, mask.right) if mask.kind == "window" else (None, None)


def _why_not(problem: Problem, device_type: str) -> str | None:
    """Say where flash-attn 2.8.3 has another mask in mind.

    It drops an end of a window that is at least ``kv_len`` away from the diagonal, takes a window without ends for no
    mask, and puts ``kv_len`` in the place of one missing end (``mha_fwd`` and ``set_params_fprop`` in
    ``csrc/flash_attn/flash_api.cpp``). On the left no key lies further away; on the right keys do for rows that lie
    more than a key before the first.
    """
    left, right = _window(problem)
    q_len, kv_len = problem.q_len, problem.kv_len
    if problem.mask.kind != "window" or (right is not None and right < kv_len):
        return None
    if left is None or left >= kv_len:  # no mask at all
        wrong = right is not None and q_len > right + 1
    else:
        wrong = right != kv_len and q_len > kv_len + 1
    return "moves a window's right end that lies kv_len or more away where q_len > kv_len + 1" if wrong else None


@implementation(
    "flash-attn",
    capabilities=Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=_HALF,
        head_dims=HeadDims(8, 256, multiple_of=8),
        masks=frozenset({"full", "causal", "window"}),
        gqa=True,
        rectangular=True,
        empty_rows=True,
        softcap=True,
        scale=True,
        min_compute_capability=(8, 0),
        also=_why_not,
    ),
    probe=lambda: _missing("flash_attn.flash_attn_interface", "flash-attn"),
    version=lambda: _version("flash-attn"),
    how_to_get="pip install flash-attn --no-build-isolation",
    kernels="(?<!pytorch_)flash::flash_",
)
def flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    """FlashAttention-2, the package flash-attn."""
    if problem.batch == 0:  # which it refuses
        return q + k.sum() + v.sum()  # as empty as q, with gradients for all three
    from flash_attn.flash_attn_interface import flash_attn_func

    left, right = _window(problem)
    out: Any = flash_attn_func(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        softmax_scale=problem.softmax_scale,
        causal=problem.mask.kind == "causal",
        window_size=(-1 if left is None else left, -1 if right is None else right),
        softcap=problem.softcap or 0.0,
    )
    return cast(torch.Tensor, out.transpose(1, 2))


@implementation(
    "flash-attn-4",
    capabilities=Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=_HALF,
        head_dims=HeadDims(64, 128, multiple_of=64),
        masks=frozenset({"full", "causal"}),
        gqa=True,
        rectangular=True,
        scale=True,
        min_compute_capability=(9, 0),
    ),
    probe=lambda: _missing("flash_attn.cute", "flash-attn-4"),
    version=lambda: _version("flash-attn-4"),
    how_to_get="pip install --pre flash-attn-4",
    kernels="(?i)flash_?attn|flash_?attention",
)
def flash_attn_4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    """FlashAttention-4 in CuTe DSL, with its Hopper and Blackwell paths."""
    from flash_attn.cute import flash_attn_func

    out: Any = flash_attn_func(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        softmax_scale=problem.softmax_scale,
        causal=problem.mask.kind == "causal",
    )
    if isinstance(out, tuple):  # newer releases return (out, lse)
        out = out[0]
    return cast(torch.Tensor, out.transpose(1, 2))

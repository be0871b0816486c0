"""``triton``: the algorithm of our CUDA kernels once more, as an own Triton kernel, forward and backward.

Beside the CUDA rungs it shows the other way of writing the same thing. Importing this imports no Triton: the kernels
are imported, and then compiled for their shapes, when they are first called.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from attn_impls.implementation import Capabilities, HeadDims, implementation
from attn_impls.problem import MASK_KINDS, Problem
from attn_impls.tiled import ops


def _define_operators() -> None:
    if ops.is_registered("triton"):
        return
    from attn_impls.triton import launch

    ops.define("triton", launch.forward, launch.backward)


def _why_not() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    return None if find_spec("triton") else "the package triton is not installed"


def _rules(problem: Problem, device_type: str) -> str | None:
    # fp32 products are done without tensor cores. Compiled for wider rows, their operands spill by kilobytes a thread.
    if problem.dtype == "fp32" and problem.head_dim > 64:
        return f"takes head_dim up to 64 in fp32, not {problem.head_dim}"
    return None


def _version() -> str:
    try:
        return f"triton {metadata.version('triton')}, torch {torch.__version__}"
    except metadata.PackageNotFoundError:
        return "triton"


@implementation(
    "triton",
    capabilities=Capabilities(
        devices=frozenset({"cuda"}),
        head_dims=HeadDims(1, 256),
        masks=frozenset(MASK_KINDS),
        gqa=True,
        rectangular=True,
        empty_rows=True,
        scale=True,
        deterministic=True,
        returns_lse=True,
        traceable=True,
        capturable=True,
        min_compute_capability=(8, 0),
        also=_rules,
    ),
    probe=_why_not,
    version=_version,
    how_to_get="pip install triton, on a CUDA device",
    kernels="attn_triton_",
)
def triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, *, return_lse: bool = False) -> Any:
    """Our Triton kernel: FlashAttention-2, forward and backward."""
    _define_operators()
    low, high = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
    out, lse = ops.call("triton", q, k, v, problem.softmax_scale, low, high)
    return (out, lse) if return_lse else out

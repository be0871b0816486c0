"""``tiled-*``: our own kernels, from the algorithm as the paper writes it to what the machine can do.

Importing this builds nothing: each kernel is compiled when it is first called, by :mod:`attn_impls.tiled.build`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch

from attn_impls.implementation import AttentionFn, Capabilities, HeadDims, Implementation, Resources
from attn_impls.problem import MASK_KINDS, Problem
from attn_impls.tiled import build, ops
from attn_impls.tiled.algorithm1 import attention as _algorithm1
from attn_impls.tiled.ops import Family
from attn_impls.tiled.resources import resource_usage

_CPU_SOURCES = build.CSRC / "cpu"
_CUDA_SOURCES = build.CSRC / "cuda"
_HOPPER_SOURCES = build.CSRC / "hopper"
_CPU_FLAGS = ("-std=c++20", "-O3", "-fvisibility=hidden")

SEQ = Family(
    "seq",
    build.Extension(
        "attn_tiled_seq",
        sources=(_CPU_SOURCES / "seq_forward.cpp", _CPU_SOURCES / "seq_backward.cpp"),
        folders=(build.CSRC, _CPU_SOURCES),
        cflags=_CPU_FLAGS,
    ),
    backward=True,
)

CPU = Family(
    "cpu",
    build.Extension(
        "attn_tiled_cpu",
        sources=tuple(_CPU_SOURCES / name for name in ("matmul.cpp", "tiled_forward.cpp", "tiled_backward.cpp")),
        folders=(build.CSRC, _CPU_SOURCES),
        cflags=(*_CPU_FLAGS, "-march=native"),
        native=True,
    ),
    backward=True,
)

_CUDA_FLAGS = ("-std=c++20", "-O3", "-lineinfo", "-DUSE_CUDA", "-Xcompiler", "-fvisibility=hidden")

# Our CUDA kernels in the order of the climb; each adds one idea to the one before.
_FP32_RUNGS = {
    "global": "tiles read from global memory where they are needed",
    "smem": "tiles of 32 x 32 in shared memory",
    "pad": "tiles padded, so that no two lanes meet in a bank",
    "coalesced": "tiles copied along their rows, whole sectors at a time",
    "unroll": "loops unrolled over known bounds",
    "regs": "register tiles, 16-byte reads of global and shared memory",
}
_FP32_LADDER = build.Extension(
    "attn_tiled_ladder",
    sources=tuple(_CUDA_SOURCES / f"{name}_forward.cu" for name in _FP32_RUNGS),
    folders=(build.CSRC, _CUDA_SOURCES),
    cuda_cflags=_CUDA_FLAGS,
)

MMA = Family(
    "mma",
    build.Extension(
        "attn_tiled_mma",
        sources=(_CUDA_SOURCES / "mma_forward.cu",),
        folders=(build.CSRC, _CUDA_SOURCES),
        cuda_cflags=_CUDA_FLAGS,
    ),
    backward=False,
)

ASYNC = Family(
    "async",
    build.Extension(
        "attn_tiled_async",
        sources=tuple(
            _CUDA_SOURCES / f"{name}.cu"
            for name in ("async_forward", "async_backward", "async_backward_fp16", "async_backward_bf16")
        ),
        folders=(build.CSRC, _CUDA_SOURCES),
        cuda_cflags=_CUDA_FLAGS,
    ),
    backward=True,
    deterministic_backward=True,
)

# Hopper's own instructions, which no other architecture has.
_HOPPER_RUNGS = {
    "wgmma": "Hopper's tensor cores by wgmma, tiles copied by TMA, an mbarrier pipeline",
    "ws": "the same, specialised: one warp copies, two or three warpgroups compute and take its registers",
    "overlap": "the same, the softmax of a tile under the matrix product of the tile before",
    "hopper": "the same in blocks that stay: query tiles without gaps, the longest first, tiles chosen by shape",
}
_HOPPER_LADDER = build.Extension(
    "attn_tiled_hopper",
    sources=(*(_HOPPER_SOURCES / f"{name}_forward.cu" for name in _HOPPER_RUNGS), _HOPPER_SOURCES / "ws_backward.cu"),
    folders=(build.CSRC, _CUDA_SOURCES, _HOPPER_SOURCES),
    cuda_cflags=_CUDA_FLAGS,
    architecture="9.0a",
    forbidden=build.SERIALISED,
)

_EVERYTHING = Capabilities(
    masks=frozenset(MASK_KINDS),
    gqa=True,
    rectangular=True,
    empty_rows=True,
    scale=True,
    deterministic=True,
    returns_lse=True,
    traceable=True,
    capturable=True,
)
_HOW_TO_BUILD = "install a C++ compiler and ninja; the kernel is built at its first call"


def _attention(family: Family) -> AttentionFn:
    def attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, *, return_lse: bool = False
    ) -> Any:
        low, high = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        out, lse = ops.attention(family, q, k, v, problem.softmax_scale, low, high)
        return (out, lse) if return_lse else out

    return attention


def _version(family: Family) -> str:
    """Name the sources by the hash that names their build."""
    return f"{build.library(family.extension).stem}, torch {torch.__version__}"


def _resources(family: Family) -> dict[str, Resources]:
    """Return what the kernels of ``family`` take, told by how their names begin: families may share a library."""
    usage = resource_usage(build.library(family.extension))
    own = "|".join((f"{family.name}_", *family.backward_names[:1]))
    return {name: one for name, one in usage.items() if re.search(rf"\b({own})", name)}


def _why_not_on_cuda(family: Family) -> str | None:
    return build.why_not(family.extension) if torch.cuda.is_available() else "needs a CUDA device"


def _why_not_on_hopper(family: Family) -> str | None:
    if torch.cuda.is_available() and (have := torch.cuda.get_device_capability()) != (9, 0):
        return f"needs compute capability 9.0 (Hopper), this device has {have[0]}.{have[1]}"
    return _why_not_on_cuda(family)


def _fp32_rung(name: str) -> tuple[Family, Implementation]:
    """Return the family and the implementation of ``csrc/cuda/<name>_forward.cu``."""
    family = Family(name, _FP32_LADDER, backward=False)
    return family, Implementation(
        f"tiled-{name}",
        _attention(family),
        dataclasses.replace(
            _EVERYTHING,
            devices=frozenset({"cuda"}),
            head_dims=HeadDims(1, 128),
            backward=False,
            min_compute_capability=(8, 0),
        ),
        summary=f"a rung of our CUDA ladder: {_FP32_RUNGS[name]}",
        kernels=f"{name}_forward_kernel",
        probe=lambda: _why_not_on_cuda(family),
        version=lambda: _version(family),
        resources=lambda: _resources(family),
        how_to_get="run on a CUDA device, with the CUDA toolkit (nvcc), a C++ compiler and ninja installed",
    )


tiled_torch = Implementation(
    "tiled-torch",
    _algorithm1,
    _EVERYTHING,
    summary="Algorithm 1 of FlashAttention-2, block by block in plain PyTorch",
)

tiled_seq = Implementation(
    "tiled-seq",
    _attention(SEQ),
    dataclasses.replace(_EVERYTHING, devices=frozenset({"cpu"})),
    summary="the same in scalar C++ on one thread, the baseline of our CPU kernel",
    kernels="attn_tiled::seq_",
    probe=lambda: build.why_not(SEQ.extension),
    version=lambda: _version(SEQ),
    how_to_get=_HOW_TO_BUILD,
)

tiled_cpu = Implementation(
    "tiled-cpu",
    _attention(CPU),
    dataclasses.replace(_EVERYTHING, devices=frozenset({"cpu"})),
    summary="our CPU kernel: parallel, vectorised, fp32 sums throughout",
    kernels="attn_tiled::cpu_",
    probe=lambda: build.why_not(CPU.extension),
    version=lambda: _version(CPU),
    how_to_get=_HOW_TO_BUILD,
)

GLOBAL, tiled_global = _fp32_rung("global")
SMEM, tiled_smem = _fp32_rung("smem")
PAD, tiled_pad = _fp32_rung("pad")
COALESCED, tiled_coalesced = _fp32_rung("coalesced")
UNROLL, tiled_unroll = _fp32_rung("unroll")
REGS, tiled_regs = _fp32_rung("regs")

_ON_TENSOR_CORES = dataclasses.replace(
    _EVERYTHING,
    devices=frozenset({"cuda"}),
    dtypes=frozenset({"bf16", "fp16"}),
    head_dims=HeadDims(8, 256, multiple_of=8),
    min_compute_capability=(8, 0),
)

tiled_mma = Implementation(
    "tiled-mma",
    _attention(MMA),
    dataclasses.replace(_ON_TENSOR_CORES, backward=False),
    summary="tensor cores: mma.sync on tiles in shared memory, weights stay in registers",
    kernels=r"\bmma_forward_kernel",
    probe=lambda: _why_not_on_cuda(MMA),
    version=lambda: _version(MMA),
    resources=lambda: _resources(MMA),
    how_to_get=tiled_smem.how_to_get,
)

tiled_async = Implementation(
    "tiled-async",
    _attention(ASYNC),
    # dQ is summed up by atomic additions unless torch.use_deterministic_algorithms is on.
    dataclasses.replace(_ON_TENSOR_CORES, deterministic=False),
    summary="the same with copies ahead of their use and swizzled tiles, forward and backward",
    kernels="async_(forward|backward)",
    probe=lambda: _why_not_on_cuda(ASYNC),
    version=lambda: _version(ASYNC),
    resources=lambda: _resources(ASYNC),
    how_to_get=tiled_smem.how_to_get,
)


def _hopper_rung(name: str, *, backward: bool) -> tuple[Family, Implementation]:
    """Return the family and the implementation of ``csrc/hopper/<name>_forward.cu``.

    Those with a backward share that of ``csrc/hopper/ws_backward.cu``, in blocks that stay. It takes heads of up to 128
    numbers; the backward of ``tiled-async`` takes wider ones.
    """
    family = Family(
        name,
        _HOPPER_LADDER,
        backward=backward,
        deterministic_backward=backward,
        backward_of="ws" if backward else "",
        widest_backward=128,
        wider=ASYNC if backward else None,
    )
    return family, Implementation(
        f"tiled-{name}",
        _attention(family),
        # As in tiled-async, dQ is summed up in any order unless torch.use_deterministic_algorithms is on.
        dataclasses.replace(
            _ON_TENSOR_CORES, backward=backward, deterministic=not backward, min_compute_capability=(9, 0)
        ),
        summary=_HOPPER_RUNGS[name],
        kernels=rf"\b{name}_forward_kernel" + (r"|\bws_backward|\basync_backward" if backward else ""),
        probe=lambda: _why_not_on_hopper(family),
        version=lambda: _version(family),
        resources=lambda: _resources(family),
        how_to_get=tiled_smem.how_to_get,
    )


WGMMA, tiled_wgmma = _hopper_rung("wgmma", backward=False)
WS, tiled_ws = _hopper_rung("ws", backward=True)
OVERLAP, tiled_overlap = _hopper_rung("overlap", backward=True)
HOPPER, tiled_hopper = _hopper_rung("hopper", backward=True)

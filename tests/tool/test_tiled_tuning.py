"""Other tiles for the forward of ``tiled-async``: their source runs right on the emulated warp."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from test_tiled_tensor_cores import EMULATOR, PROBLEMS, assert_right, dtype_of, inputs

from attn_impls.problem import FULL, Mask, Problem
from attn_impls.tiled import build, ops

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location(
    "tuning_forward", ROOT / "reports" / "h100" / "ladder" / "tuning" / "forward.py"
)
assert _spec is not None
assert _spec.loader is not None
forward = importlib.util.module_from_spec(_spec)
sys.modules["tuning_forward"] = forward  # a dataclass looks its module up
_spec.loader.exec_module(forward)

# Tiles that are no power of two, parts of 16 keys, warps of 48 queries.
TRIED = ("fused_64_k96", "fused_64_r48_k64", "fused_128_k48")
VARIANTS = pytest.mark.parametrize("variant", [x for x in forward.VARIANTS if x.name in TRIED], ids=lambda x: x.name)
LONG = (
    Problem(1, 1, 1, 300, 420, 64, "bf16", Mask("causal")),
    Problem(1, 1, 1, 260, 520, 64, "fp16", Mask("window", 150, 40)),
)


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("tuning") / "csrc"
    shutil.copytree(build.CSRC, root)
    for header in EMULATOR.glob("*.h"):
        shutil.copy(header, root / "cuda")
    sources = []
    for variant in forward.VARIANTS:
        if variant.name in TRIED:
            sources.append(root / "cuda" / f"{variant.name}.cpp")
            sources[-1].write_text(forward.source(variant, device="CPU", half=True))
    include = ("-include", str(root / "cuda" / "emulator.h"))
    flags = ("-std=c++20", "-O1", "-w", *include)
    build.load(build.Extension("attn_tuning_emulated", tuple(sources), (root, root / "cuda"), cflags=flags))


def run(variant: object, problem: Problem, qkv: tuple[torch.Tensor, ...]) -> None:
    operator = getattr(torch.ops.attn_tuning, variant.name)  # type: ignore[attr-defined]
    args = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
    out, lse = operator(*(x.detach() for x in qkv), problem.softmax_scale, *args)
    assert_right(out, lse, qkv, problem, backward=False)


@VARIANTS
def test_source_runs_right_on_an_emulated_warp(operators: None, variant: object) -> None:
    columns = variant.head_dim  # type: ignore[attr-defined]
    tried = [problem for problem in (*PROBLEMS, *LONG) if problem.head_dim <= columns]
    assert len(tried) > 5
    for problem in tried:
        run(variant, problem, inputs(problem, "cpu", dtype_of(problem)))


@VARIANTS
def test_maxima_that_grow_from_tile_to_tile(operators: None, variant: object) -> None:
    """Within a lane's own columns too: lanes that did not see the largest score must follow those that did."""
    problem = Problem(1, 1, 1, 40, 390, variant.head_dim, "fp16", FULL)  # type: ignore[attr-defined]
    q, k, v = inputs(problem, "cpu", torch.float16)
    with torch.no_grad():
        k *= torch.linspace(-8, 8, 390).abs()[:, None]
        k[:, :, 3] *= 4
    run(variant, problem, (q, k, v))

"""The Hopper rungs' source on an emulated block: mbarriers, copies and wgmma by plain C++, on a device of five SMs.

A copy arrives late and destroys what it overwrites at once, a product gives its result when it is waited for and fails
if an operand changed before, and threads that wait for each other fail: a wrong turn, phase or release shows.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from test_tiled_tensor_cores import assert_right, dtype_of, emulate, emulated_folder, inputs

from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.tiled import HOPPER, OVERLAP, build, ops
from attn_impls.tiled.ops import Family

ROOT = Path(__file__).parents[2]
# Every width and choice of tiles; one query tile for the device and many for each block; several key tiles, ragged
# ones and none; groups of heads.
PROBLEMS = [
    Problem(1, 1, 1, 64, 64, 64, "bf16", FULL),
    Problem(1, 2, 1, 190, 300, 64, "fp16", FULL),
    Problem(1, 7, 7, 180, 180, 64, "bf16", CAUSAL),
    Problem(2, 3, 1, 230, 270, 64, "bf16", CAUSAL),
    Problem(1, 3, 3, 580, 130, 40, "fp16", CAUSAL),
    Problem(1, 3, 3, 570, 300, 64, "bf16", CAUSAL),
    Problem(2, 3, 1, 380, 200, 64, "fp16", FULL),
    Problem(1, 2, 2, 140, 310, 128, "bf16", FULL),
    Problem(2, 2, 1, 230, 140, 128, "fp16", FULL),  # two of three warpgroups have no queries in the first tile
    Problem(1, 5, 5, 300, 300, 128, "bf16", CAUSAL),
    Problem(1, 3, 3, 250, 390, 64, "fp16", Mask("window", 70, 40)),
    Problem(1, 8, 2, 150, 20, 128, "fp16", FULL),
    Problem(1, 2, 2, 400, 200, 128, "bf16", Mask("window", 20, 10)),
    Problem(1, 3, 1, 200, 120, 256, "bf16", CAUSAL),
    # Keys end one behind half a key tile, by the mask and by their number.
    Problem(1, 2, 2, 65, 65, 128, "bf16", CAUSAL),
    Problem(1, 2, 1, 130, 193, 128, "bf16", FULL),
    Problem(1, 1, 1, 576, 640, 64, "bf16", Mask("window", None, 336)),  # a mask on tiles with overlap
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {family.name: emulate(family, tmp_path_factory.mktemp(family.name)) for family in (OVERLAP, HOPPER)}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_top_rung_runs_right_on_an_emulated_block(emulated: dict[str, Family], problem: Problem) -> None:
    qkv = inputs(problem, "cpu", dtype_of(problem))
    args = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
    with torch.no_grad():
        # Each launch finds the counter of fetched tiles as the one before left it.
        out, lse = ops.attention(emulated["hopper"], *qkv, problem.softmax_scale, *args)
        assert_right(out, lse, qkv, problem, backward=False)


def test_rung_before_runs_right_on_an_emulated_block(emulated: dict[str, Family]) -> None:
    problem = Problem(1, 2, 1, 230, 270, 64, "bf16", CAUSAL)
    qkv = inputs(problem, "cpu", torch.bfloat16)
    args = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
    with torch.no_grad():
        out, lse = ops.attention(emulated["overlap"], *qkv, problem.softmax_scale, *args)
    assert_right(out, lse, qkv, problem, backward=False)


@pytest.mark.parametrize("name", ["d64_3x128_inner", "d64_4x64_apart", "d128_3x128_apart_halves"])
def test_candidates_run_right_in_every_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "reports" / "h100" / "ladder" / "tuning" / "hopper_forward.py"
    spec = importlib.util.spec_from_file_location("tuning_hopper_forward", path)
    assert spec is not None
    assert spec.loader is not None
    tuning = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "tuning_hopper_forward", tuning)  # a dataclass looks its module up
    spec.loader.exec_module(tuning)
    variant = next(each for each in tuning.VARIANTS if each.name == name)
    root, flags = emulated_folder(tmp_path)
    source = root / "hopper" / "candidate.cpp"
    text = tuning.SOURCE.format(name=variant.name, tiles=variant.tiles)
    source.write_text(text.replace("(attn_tuning, CUDA,", "(attn_tuning, CPU,"))
    build.load(build.Extension(f"attn_tuning_{name}", (source,), (root, root / "cuda", root / "hopper"), cflags=flags))

    problem = Problem(1, 4, 4, 300, 170, variant.width, "bf16", CAUSAL)  # the first rows see nothing
    qkv = inputs(problem, "cpu", torch.bfloat16)
    for order in tuning.ORDERS[CAUSAL].values():
        with torch.no_grad():
            out, lse = tuning.call_of(variant, order)(*qkv, problem)
        assert_right(out, lse, qkv, problem, backward=False)
    with monkeypatch.context() as without_a_counter, torch.no_grad():
        without_a_counter.setenv("EMULATED_STREAM_PER_THREAD", "1")
        dealt, lse = tuning.call_of(variant, (2, True))(*qkv, problem)
    assert_right(dealt, lse, qkv, problem, backward=False)
    with torch.no_grad():
        qkv[1][:, 1, 0] = torch.nan  # a key that rows from 130 on see
        out_with_nan, _ = tuning.call_of(variant, order)(*qkv, problem)
    out[:, 1, 130:] = torch.nan
    torch.testing.assert_close(out_with_nan, out, rtol=0, atol=0, equal_nan=True)

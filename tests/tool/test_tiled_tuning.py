"""Other tiles for the forward of ``tiled-async``: their source runs right on the emulated warp."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_tiled_tensor_cores import PROBLEMS, assert_right, emulated_folder, inputs

from attn_impls.problem import FULL, Mask, Problem
from attn_impls.tiled import build

Call = Callable[..., tuple[torch.Tensor, torch.Tensor]]

TUNING = Path(__file__).parents[2] / "reports" / "h100" / "ladder" / "tuning"
# Tiles that are no power of two, parts of 16 keys, warps of 16 and of 48 queries, eight warps.
TRIED = ("d64_k96", "d64_k64_48rows", "d128_k48_16rows_3blocks", "d128_k64_8warps")
NAMES = pytest.mark.parametrize("name", TRIED)
LONG = (
    Problem(1, 1, 1, 300, 420, 64, "bf16", Mask("causal")),
    Problem(1, 1, 1, 260, 520, 64, "bf16", Mask("window", 150, 40)),
)


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, Call]]]:
    """The width and the operator of each candidate in ``TRIED``, built for the emulated warp."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])  # which the script adds to
        spec = importlib.util.spec_from_file_location("tuning_forward", TUNING / "forward.py")
        assert spec is not None
        assert spec.loader is not None
        forward = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "tuning_forward", forward)  # a dataclass looks its module up
        spec.loader.exec_module(forward)
        root, flags = emulated_folder(tmp_path_factory.mktemp("tuning"))
        tried = [variant for variant in forward.VARIANTS if variant.name in TRIED]
        sources = []
        for variant in tried:
            sources.append(root / "cuda" / f"{variant.name}.cpp")
            sources[-1].write_text(forward.source(variant).replace("(attn_tuning, CUDA,", "(attn_tuning, CPU,"))
        build.load(build.Extension("attn_tuning_emulated", tuple(sources), (root, root / "cuda"), cflags=flags))
        yield {variant.name: (variant.width, forward.call_of(variant)) for variant in tried}


@NAMES
def test_source_runs_right_on_an_emulated_warp(variants: dict[str, tuple[int, Call]], name: str) -> None:
    width, call = variants[name]
    tried = [each for each in (*PROBLEMS, *LONG) if each.head_dim <= width and each.dtype == "bf16"]
    assert len(tried) > 5
    for problem in tried:
        qkv = inputs(problem, "cpu", torch.bfloat16)
        with torch.no_grad():
            out, lse = call(*qkv, problem)
        assert_right(out, lse, qkv, problem, backward=False)


@NAMES
def test_maxima_that_grow_from_tile_to_tile(variants: dict[str, tuple[int, Call]], name: str) -> None:
    """Within a lane's own columns too: lanes that did not see the largest score must follow those that did."""
    width, call = variants[name]
    problem = Problem(1, 1, 1, 40, 390, width, "bf16", FULL)
    q, k, v = inputs(problem, "cpu", torch.bfloat16)
    with torch.no_grad():
        k *= torch.linspace(-8, 8, 390).abs()[:, None]
        k[:, :, 3] *= 4
        out, lse = call(q, k, v, problem)
    assert_right(out, lse, (q, k, v), problem, backward=False)

"""The Hopper rungs and what they are made of, on the device that they are for; that they compile, everywhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from attn_impls import tiled
from attn_impls.implementation import Implementation
from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.tiled import HOPPER, OVERLAP, WGMMA, WS, build, ops, tiled_hopper, tiled_overlap, tiled_wgmma, tiled_ws
from tests.tool.test_tiled_tensor_cores import (
    PROBLEMS,
    assert_graph_computes_on_new_inputs,
    assert_right,
    dtype_of,
    inputs,
)

PROBE = Path(__file__).parent / "hopper" / "probe.cu"
NVCC = build.cuda_tool("nvcc")
LARGER = (
    Problem(2, 4, 2, 1000, 1030, 64, "bf16", CAUSAL),
    Problem(1, 4, 1, 515, 515, 128, "fp16", Mask("window", 100, 0)),
    Problem(1, 2, 2, 300, 700, 192, "bf16", FULL),
    Problem(1, 2, 2, 2048, 2048, 128, "bf16", CAUSAL),
    Problem(1, 2, 2, 300, 300, 128, "bf16", CAUSAL, scale=0.3),
    Problem(70_000, 1, 1, 3, 5, 64, "bf16", CAUSAL),  # past the 65535 blocks of a grid's y and z
    Problem(1, 70_000, 1, 3, 5, 64, "bf16", CAUSAL),
)
RUNGS = (tiled_wgmma, tiled_ws, tiled_overlap, tiled_hopper)
IMPLEMENTATIONS = pytest.mark.parametrize("impl", RUNGS, ids=lambda impl: impl.name)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that asks the device about each layer, compiled."""
    made = tmp_path_factory.mktemp("probe") / "probe"
    command = [str(NVCC), "-std=c++20", "-O2", "-gencode", "arch=compute_90a,code=sm_90a", f"-I{build.CSRC}"]
    command += [str(PROBE), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "C75" not in done.stderr + done.stdout
    return made


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_probe_compiles_and_has_a_check_for_every_layer(probe: Path) -> None:
    listed = subprocess.run([probe, "list"], capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert {each.split("_")[0] for each in listed} >= {"load", "store", "ring", "wgmma"}


@pytest.mark.parametrize(
    ("capability", "why"),
    [
        ((9, 0), None),
        ((8, 0), "needs compute capability 9.0 (Hopper), this device has 8.0"),
        ((10, 0), "needs compute capability 9.0 (Hopper), this device has 10.0"),
    ],
)
def test_only_hopper_is_asked_to_run_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], why: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(build, "why_not", lambda extension: None)
    assert {impl.why_unavailable("cuda") for impl in RUNGS} == {why}


def test_it_is_built_for_hopper_whatever_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    assert build._cuda_architecture(WS.extension) == "9.0a"
    assert build._cuda_architecture(tiled.ASYNC.extension) == "8.0;9.0"
    name = build.library(WS.extension)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert build.library(WS.extension) == name == build.library(WGMMA.extension)


@pytest.mark.gpu
@pytest.mark.skipif(tiled_ws.why_unavailable("cuda") is not None, reason=str(tiled_ws.why_unavailable("cuda")))
class TestOnHopper:
    def test_every_layer_does_what_its_header_says(self, probe: Path) -> None:
        listed = subprocess.run([probe, "list"], capture_output=True, text=True, timeout=60, check=True).stdout.split()
        for each in listed:
            done = subprocess.run([probe, each], capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    @IMPLEMENTATIONS
    @pytest.mark.parametrize("problem", [*PROBLEMS, *LARGER], ids=lambda problem: problem.id)
    def test_numbers(self, impl: Implementation, problem: Problem) -> None:
        qkv = inputs(problem, "cuda", dtype_of(problem))
        out, lse = impl(*qkv, problem, return_lse=True)
        assert_right(out, lse, qkv, problem, backward=False)

    @IMPLEMENTATIONS
    def test_heads_that_share_memory_and_rows_that_are_not_aligned(self, impl: Implementation) -> None:
        problem = Problem(1, 3, 3, 70, 66, 64, "bf16", CAUSAL)
        q = torch.randn(1, 70, 3, 65, device="cuda").bfloat16()[..., 1:].transpose(1, 2)
        k, v = (torch.randn(1, 1, 66, 64, device="cuda").bfloat16().expand(1, 3, 66, 64) for _ in range(2))
        out, lse = impl(q, k, v, problem, return_lse=True)
        expected, expected_lse = tiled.tiled_torch(q.double(), k.double(), v.double(), problem, return_lse=True)
        torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-4, atol=1e-4)

    @IMPLEMENTATIONS
    @pytest.mark.parametrize("head_dim", [64, 128, 256])
    @pytest.mark.parametrize("towards_the_first", [True, False])
    def test_maxima_that_grow_from_tile_to_tile(
        self, impl: Implementation, head_dim: int, towards_the_first: bool
    ) -> None:
        """The output so far must be brought to each new maximum, which N(0, 1) scores hardly ever ask for."""
        problem = Problem(1, 2, 2, 200, 1030, head_dim, "fp16", FULL)
        q, k, v = inputs(problem, "cuda", torch.float16)
        growth = torch.linspace(0, 16, 1030, device="cuda")
        with torch.no_grad():
            k *= (growth.flip(0) if towards_the_first else growth)[:, None]
        out, lse = impl(q, k, v, problem, return_lse=True)
        assert_right(out, lse, (q, k, v), problem, backward=False)

    @IMPLEMENTATIONS
    def test_nan_stays_in_its_row_and_its_head(self, impl: Implementation) -> None:
        """Also where it lies beyond the end of the keys, of a row, or in the keys and values of another head."""
        problem = Problem(2, 3, 3, 150, 100, 72, "bf16", FULL)
        q, k, v = inputs(problem, "cuda", torch.bfloat16)
        expected = impl(q, k, v, problem)
        within = torch.full((2, 4, 150, 80), torch.nan, device="cuda", dtype=torch.bfloat16)
        views = [within.clone()[:, :3, : x.shape[2], :72].copy_(x.detach()) for x in (q, k, v)]
        assert torch.equal(impl(*views, problem), expected)
        views[0][0, 1, 70] = torch.nan
        views[2][1, 2, 99] = torch.nan
        nan = impl(*views, problem).isnan()
        wanted = torch.zeros_like(nan)
        wanted[0, 1, 70] = wanted[1, 2] = True
        assert torch.equal(nan, wanted)

    @IMPLEMENTATIONS
    def test_graph_on_another_stream_computes_on_new_inputs(self, impl: Implementation) -> None:
        assert_graph_computes_on_new_inputs(impl)

    @pytest.mark.parametrize("family", [WGMMA, WS, OVERLAP, HOPPER], ids=lambda family: family.name)
    def test_opcheck(self, family: ops.Family) -> None:
        problem = PROBLEMS[0]
        ops.load(family)
        plain = [x.detach() for x in inputs(problem, "cuda", torch.bfloat16)]
        operator = getattr(torch.ops.attn_tiled, f"{family.name}_forward")
        diagonals = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        torch.library.opcheck(operator, [*plain, 0.5, *diagonals])

    @IMPLEMENTATIONS
    def test_launches_repeat_their_bits(self, impl: Implementation) -> None:
        problem = Problem(2, 16, 16, 2048, 2048, 128, "bf16", CAUSAL)
        qkv = inputs(problem, "cuda", torch.bfloat16)
        first = impl(*qkv, problem)
        assert all(torch.equal(first, impl(*qkv, problem)) for _ in range(100))

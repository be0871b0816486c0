"""The Hopper rungs and what they are made of, on the device that they are for; that they compile, everywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from attn_impls import tiled
from attn_impls.implementation import Implementation
from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.tiled import (
    ASYNC,
    HOPPER,
    OVERLAP,
    WGMMA,
    WS,
    build,
    ops,
    tiled_hopper,
    tiled_overlap,
    tiled_wgmma,
    tiled_ws,
)
from tests.tool.test_tiled_tensor_cores import (
    PROBLEMS,
    assert_graph_computes_on_new_inputs,
    assert_near,
    assert_right,
    dtype_of,
    gradients,
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
    layers = {"load", "store", "ring", "wgmma", "run", "matrices", "exchange"}
    assert {each.split("_")[0] for each in listed} >= layers


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


def test_backward_is_shared_and_wide_heads_go_to_another() -> None:
    assert (
        HOPPER.backward_names
        == OVERLAP.backward_names
        == WS.backward_names
        == ("ws_backward", "ws_backward_deterministic")
    )
    assert WGMMA.backward_names == ()
    assert [WS.differentiates(head_dim) for head_dim in (8, 128, 136, 256)] == [WS, WS, ASYNC, ASYNC]
    assert not tiled_wgmma.capabilities.backward
    assert tiled_hopper.capabilities.backward


def test_autograd_calls_the_backward_that_takes_the_head_dim(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def forward(q: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        return q.clone(), q.new_zeros(q.shape[:3])

    def backward_of(name: str) -> Callable[..., tuple[torch.Tensor, ...]]:
        def backward(dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object) -> object:
            called.append(name)
            return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

        return backward

    def build_load(extension: build.Extension) -> None:
        for operator, schema, function in (
            ("test_narrow_forward", ops._FORWARD_SCHEMA, forward),
            ("test_narrow_backward", ops._BACKWARD_SCHEMA, backward_of("narrow")),
        ):
            torch.library.define(f"attn_tiled::{operator}", schema)
            torch.library.impl(f"attn_tiled::{operator}", "cpu", function)

    ops.define("test_wide", forward, backward_of("wide"))
    monkeypatch.setattr(build, "load", build_load)
    wide = ops.Family("test_wide", ASYNC.extension, backward=True)
    narrow = ops.Family("test_narrow", ASYNC.extension, backward=True, widest_backward=8, wider=wide)
    for head_dim in (8, 16):
        q = torch.zeros(1, 1, 2, head_dim, requires_grad=True)
        ops.attention(narrow, q, q, q, 1.0, 0, 0)[0].sum().backward()
    assert called == ["narrow", "wide"]


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
        assert_right(out, lse, qkv, problem, backward=impl.capabilities.backward, use_lse=impl is tiled_overlap)

    @pytest.mark.parametrize("problem", [*PROBLEMS, *LARGER], ids=lambda problem: problem.id)
    def test_deterministic_backward_repeats_its_bits(self, problem: Problem) -> None:
        qkv = inputs(problem, "cuda", dtype_of(problem))
        out, lse = tiled_ws(*qkv, problem, return_lse=True)
        torch.use_deterministic_algorithms(True)
        try:
            assert_right(out, lse, qkv, problem, backward=True, use_lse=True)
            first = gradients(out, lse, qkv, True)
            again = [gradients(out, lse, qkv, True) for _ in range(20)]
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(a, b) for some in again for a, b in zip(first, some, strict=True))

    def test_backward_offsets_past_32_bits(self) -> None:
        """k and v have 2.7e9 numbers each; the last head lies past the first 2^31 of them."""
        q = torch.randn(1, 40, 1, 64, device="cuda", dtype=torch.bfloat16) * 6
        k, v = (torch.randn(1, 40, 1 << 20, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        problem = Problem(1, 40, 40, 1, 1 << 20, 64, "bf16", FULL)
        qkv = tuple(x.requires_grad_() for x in (q, k, v))
        dout = torch.randn_like(q)
        got = torch.autograd.grad(tiled_ws(*qkv, problem), qkv, dout)
        last = tuple(x[:, -1:].detach().double().requires_grad_() for x in qkv)
        expected = (last[0] @ last[1].mT * problem.softmax_scale).softmax(-1) @ last[2]
        wanted = torch.autograd.grad(expected, last, dout[:, -1:].double())
        for x, y in zip(got, wanted, strict=True):
            assert (x[:, -1:] - y).abs().max() <= 2e-2 * y.abs().max()

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_backward_of_an_empty_band_ends(self, deterministic: bool) -> None:
        """Diagonals that cross hide everything; blocks that wait for each other must not wait for ever."""
        ops.load(WS)
        q, k, v = (torch.randn(1, 1, 300, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        out, lse = torch.zeros_like(q), torch.full((1, 1, 300), -torch.inf, device="cuda")
        operator = getattr(torch.ops.attn_tiled, WS.backward_names[deterministic])
        grads = operator(torch.randn_like(q), q, k, v, out, lse, None, 0.125, 5, 3)
        assert not any(x.any() for x in grads)

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

    def test_gradient_of_heads_that_share_memory_and_of_one_number(self) -> None:
        problem = Problem(1, 3, 3, 70, 66, 64, "bf16", CAUSAL)
        q = torch.randn(1, 70, 3, 64, device="cuda").bfloat16().transpose(1, 2).requires_grad_()
        shared = (torch.randn(1, 1, 66, 64, device="cuda").bfloat16() for _ in range(2))
        k, v = (x.expand(1, 3, 66, 64).requires_grad_() for x in shared)
        out = tiled_ws(q, k, v, problem)
        wide = tuple(x.detach().double().requires_grad_() for x in (q, k, v))
        expected = tiled.tiled_torch(*wide, problem)
        got, wanted = (torch.autograd.grad(x.sum(), y) for x, y in ((out, (q, k, v)), (expected, wide)))
        for x, y in zip(got, wanted, strict=True):
            assert_near(x, y)

    @pytest.mark.parametrize("family", [WGMMA, WS, OVERLAP, HOPPER], ids=lambda family: family.name)
    def test_opcheck(self, family: ops.Family) -> None:
        problem = PROBLEMS[0]
        ops.load(family)
        plain = [x.detach() for x in inputs(problem, "cuda", torch.bfloat16)]
        operator = getattr(torch.ops.attn_tiled, f"{family.name}_forward")
        diagonals = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        torch.library.opcheck(operator, [*plain, 0.5, *diagonals])
        out, lse = operator(*plain, 0.5, *diagonals)
        for backward in family.backward_names:
            utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
            for dlse in (None, torch.ones_like(lse)):
                arguments = [torch.ones_like(out), *plain, out, lse, dlse, 0.5, *diagonals]
                torch.library.opcheck(getattr(torch.ops.attn_tiled, backward), arguments, test_utils=utils)

    @IMPLEMENTATIONS
    def test_a_thread_whose_first_call_of_cuda_it_is(self, impl: Implementation) -> None:
        """As autograd's, which begins without a context and allocates nothing where memory was kept."""
        problem = Problem(2, 2, 2, 200, 200, 64, "bf16", CAUSAL)
        qkv = inputs(problem, "cuda", torch.bfloat16)

        def grads() -> tuple[torch.Tensor, ...]:
            if not impl.capabilities.backward:
                return ()
            return torch.autograd.grad(impl(*qkv, problem).float().square().sum(), qkv)

        kept = [torch.empty(1 << 20, device="cuda") for _ in range(40)]
        del kept
        here = grads()
        with ThreadPoolExecutor(1) as thread:
            out = thread.submit(lambda: impl(*(x.detach() for x in qkv), problem)).result()
        torch.testing.assert_close(out, impl(*qkv, problem), rtol=0, atol=0)
        for x, y in zip(grads(), here, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-2, atol=1e-2)

    @IMPLEMENTATIONS
    def test_launches_repeat_their_bits(self, impl: Implementation) -> None:
        problem = Problem(2, 16, 16, 2048, 2048, 128, "bf16", CAUSAL)
        qkv = inputs(problem, "cuda", torch.bfloat16)
        first = impl(*qkv, problem)
        assert all(torch.equal(first, impl(*qkv, problem)) for _ in range(100))

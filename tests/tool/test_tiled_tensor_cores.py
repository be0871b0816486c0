"""``tiled-mma`` and ``tiled-async`` on the GPU where there is one, and everywhere their source on an emulated warp.

The kernel files are compiled as C++ with ``emulator/`` in place of the headers that hold instructions: tensor cores,
ldmatrix and asynchronous copies follow the PTX ISA's tables lane by lane, so that a wrong index gives a wrong number.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.tiled import ASYNC, MMA, build, ops, tiled_async, tiled_mma, tiled_torch
from attn_impls.tiled.ops import Family
from tests.tool.emulation import register_on_the_cpu

EMULATOR = Path(__file__).parent / "emulator"
TOP_LEFT = Mask("causal_top_left")
# All widths of tile, all masks, groups, ragged ends, rows that see nothing, and more than one tile of everything.
PROBLEMS = [
    Problem(1, 2, 1, 40, 70, 32, "bf16", CAUSAL),
    Problem(1, 1, 1, 130, 129, 64, "bf16", CAUSAL),  # one row sees nothing
    Problem(1, 1, 1, 70, 33, 40, "fp16", CAUSAL),
    Problem(2, 1, 1, 17, 150, 96, "bf16", Mask("window", 30, 20)),
    Problem(1, 3, 1, 65, 97, 128, "fp16", FULL),
    Problem(1, 1, 1, 31, 65, 136, "fp16", TOP_LEFT),
    Problem(1, 1, 1, 66, 70, 256, "bf16", CAUSAL),
    Problem(1, 1, 1, 200, 40, 8, "fp16", Mask("window", 3, 2)),
    Problem(1, 4, 2, 1, 300, 64, "fp16", CAUSAL),
    Problem(1, 1, 1, 130, 260, 128, "bf16", CAUSAL),
    Problem(1, 2, 1, 128, 192, 64, "fp16", Mask("window", 1 << 40, 1 << 40)),  # whole tiles only, none masked
    Problem(1, 1, 1, 20, 190, 64, "bf16", TOP_LEFT),  # no query sees the last tiles
    Problem(0, 2, 2, 5, 5, 8, "bf16", CAUSAL),
]
FAMILIES = pytest.mark.parametrize("name", ["mma", "async"])


def emulated_folder(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Copy ``csrc`` to ``folder``, with the emulator's headers; return where, and the flags to compile it."""
    root = folder / "csrc"
    shutil.copytree(build.CSRC, root)
    for header in EMULATOR.rglob("*.h"):
        shutil.copy(header, root / ("hopper" if header.parent.name == "hopper" else "cuda"))
    register_on_the_cpu(root / "cuda" / "register_forward.h")
    return root, ("-std=c++20", "-O1", "-w", "-include", str(root / "cuda" / "emulator.h"))


def emulate(family: Family, folder: Path) -> Family:
    """Make operators ``attn_tiled::emulated_<name>_*`` on CPU tensors from the CUDA sources of ``family``."""
    root, flags = emulated_folder(folder)
    sources = []
    for original in family.extension.sources:
        if not original.stem.startswith(f"{family.name}_"):  # a rung that shares the library
            continue
        text = original.read_text().replace("(attn_tiled, CUDA,", "(attn_tiled, CPU,")
        sources.append(root / original.parent.name / f"emulated_{original.stem}.cpp")
        sources[-1].write_text(re.sub(rf'"({family.name}_\w+)(?=[("])', r'"emulated_\1', text))
    extension = build.Extension(
        f"attn_tiled_emulated_{family.name}", tuple(sources), (root, root / "cuda", root / "hopper"), cflags=flags
    )
    backward = family.backward and family.backward_of in ("", family.name)  # not where another rung's source has it
    return Family(f"emulated_{family.name}", extension, backward, backward and family.deterministic_backward)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {family.name: emulate(family, tmp_path_factory.mktemp(family.name)) for family in (MMA, ASYNC)}


def inputs(problem: Problem, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((problem.heads, problem.q_len), *[(problem.kv_heads, problem.kv_len)] * 2)
    return tuple(
        torch.randn(problem.batch, length, heads, problem.head_dim, generator=generator)
        .transpose(1, 2)
        .to(device, dtype)
        .requires_grad_()
        for heads, length in sizes
    )


def gradients(
    out: torch.Tensor, lse: torch.Tensor, qkv: tuple[torch.Tensor, ...], use_lse: bool
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator).to(out)
    outs, grads = (out,), (dout,)
    if use_lse:
        # A row that sees nothing has log-sum-exp -inf, of which no gradient is asked.
        dlse = torch.randn(lse.shape, generator=generator).to(lse).masked_fill(lse.isneginf(), 0.0)
        outs, grads = (out, lse), (dout, dlse)
    return torch.autograd.grad(outs, qkv, grads, retain_graph=True)


def assert_right(
    out: torch.Tensor,
    lse: torch.Tensor,
    qkv: tuple[torch.Tensor, ...],
    problem: Problem,
    *,
    backward: bool,
    use_lse: bool = False,
) -> None:
    """Compare with Algorithm 1 in fp64; the tolerance is a few roundings of the 16-bit type at the tensor's size."""
    wide = tuple(x.detach().double().requires_grad_() for x in qkv)
    expected, expected_lse = tiled_torch(*wide, problem, return_lse=True)
    assert out.dtype == qkv[0].dtype
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-4, atol=1e-4)
    assert_near(out, expected)
    if backward:
        got = gradients(out, lse, qkv, use_lse)
        for x, y in zip(got, gradients(expected, expected_lse, wide, use_lse), strict=True):
            assert_near(x, y)


def assert_near(x: torch.Tensor, y: torch.Tensor) -> None:
    tolerance = 4 * torch.finfo(x.dtype).eps
    assert x.shape == y.shape
    if y.numel():
        size = y.detach().abs().max().item()  # that of a mean over many keys is far below 1
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance * size)


def assert_graph_computes_on_new_inputs(impl: Implementation) -> None:
    """Capture a call on a stream of its own, change its inputs, and compare the replay with a plain call."""
    problem = Problem(1, 2, 2, 512, 512, 64, "bf16", CAUSAL)
    backward = impl.capabilities.backward
    qkv = inputs(problem, "cuda", torch.bfloat16)
    dout = torch.randn_like(qkv[0])

    def run() -> list[torch.Tensor]:
        out = impl(*qkv, problem)
        # Detached: what is kept of one run would keep its graph, whose leaves belong to that run's stream.
        return [out.detach(), *torch.autograd.grad(out, qkv, dout)] if backward else [out]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # built before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # fails for a launch on any other stream, and for a host sync
        captured = run()
    with torch.no_grad():
        for x in qkv:
            x.copy_(torch.randn_like(x))
    graph.replay()
    for x, y in zip(captured, run(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-3)  # dQ's sums come in any order


def dtype_of(problem: Problem) -> torch.dtype:
    return torch.bfloat16 if problem.dtype == "bf16" else torch.float16


@FAMILIES
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_source_runs_right_on_an_emulated_warp(emulated: dict[str, Family], name: str, problem: Problem) -> None:
    family = emulated[name]
    qkv = inputs(problem, "cpu", dtype_of(problem))
    args = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
    out, lse = ops.attention(family, *qkv, problem.softmax_scale, *args)
    assert_right(out, lse, qkv, problem, backward=family.backward)


@pytest.mark.parametrize("problem", PROBLEMS[:7], ids=lambda problem: problem.id)
def test_deterministic_source_and_gradient_of_lse(emulated: dict[str, Family], problem: Problem) -> None:
    qkv = inputs(problem, "cpu", dtype_of(problem))
    args = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
    out, lse = ops.attention(emulated["async"], *qkv, problem.softmax_scale, *args)
    torch.use_deterministic_algorithms(True)
    try:
        assert_right(out, lse, qkv, problem, backward=True, use_lse=True)
    finally:
        torch.use_deterministic_algorithms(False)


@FAMILIES
def test_rows_that_are_not_aligned_are_copied(emulated: dict[str, Family], name: str) -> None:
    problem = Problem(1, 1, 1, 20, 20, 16, "bf16", CAUSAL)
    qkv = tuple(torch.randn(1, 1, 20, 17, dtype=torch.bfloat16)[..., 1:] for _ in range(3))
    out, lse = ops.attention(emulated[name], *qkv, problem.softmax_scale, *ops.diagonals(CAUSAL, 20, 20))
    assert_right(out, lse, qkv, problem, backward=False)


@FAMILIES
@pytest.mark.parametrize("head_dim", [64, 128])
def test_maxima_that_grow_from_tile_to_tile(emulated: dict[str, Family], name: str, head_dim: int) -> None:
    """What was summed up before a much larger score must be brought to it, in whichever order tiles are visited."""
    problem = Problem(1, 1, 1, 40, 260, head_dim, "fp16", FULL)
    q, k, v = inputs(problem, "cpu", torch.float16)
    with torch.no_grad():
        k *= torch.linspace(-8, 8, 260).abs()[:, None]
    out, lse = ops.attention(emulated[name], q, k, v, problem.softmax_scale, *ops.diagonals(FULL, 40, 260))
    assert_right(out, lse, (q, k, v), problem, backward=emulated[name].backward)


def test_heads_that_share_memory_and_a_gradient_of_one_number(emulated: dict[str, Family]) -> None:
    problem = Problem(1, 3, 3, 70, 66, 64, "bf16", CAUSAL)
    q = torch.randn(1, 70, 3, 64).bfloat16().transpose(1, 2).requires_grad_()
    k, v = (torch.randn(1, 1, 66, 64).bfloat16().expand(1, 3, 66, 64).requires_grad_() for _ in range(2))
    out, _ = ops.attention(emulated["async"], q, k, v, problem.softmax_scale, *ops.diagonals(CAUSAL, 70, 66))
    wide = tuple(x.detach().double().requires_grad_() for x in (q, k, v))
    expected = tiled_torch(*wide, problem)
    for x, y in zip(torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(expected.sum(), wide), strict=True):
        assert_near(x, y)


@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[4]], ids=lambda problem: problem.id)
def test_nothing_is_read_before_it_is_written(emulated: dict[str, Family], problem: Problem) -> None:
    """Deterministic mode makes torch fill what it allocates with NaN; the operators are called past autograd."""
    qkv = inputs(problem, "cpu", dtype_of(problem))
    rest = (problem.softmax_scale, *ops.diagonals(problem.mask, problem.q_len, problem.kv_len))
    ops.load(emulated["async"])
    operators = torch.ops.attn_tiled
    wide = tuple(x.detach().double().requires_grad_() for x in qkv)
    expected = tiled_torch(*wide, problem)
    dout = torch.randn(expected.shape).to(qkv[0])
    q, k, v = (x.detach() for x in qkv)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(4).isnan().all()
        out, lse = operators.emulated_async_forward(q, k, v, *rest)
        grads = operators.emulated_async_backward(dout, q, k, v, out, lse, None, *rest)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_near(out, expected)
    for x, y in zip(grads, torch.autograd.grad(expected, wide, dout.double()), strict=True):
        assert_near(x, y)


@FAMILIES
@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        (torch.float32, 64, "q must be bfloat16 or float16, got float32"),
        (torch.float16, 20, "head_dim must be a multiple of 8 and at most 256, got 20"),
        (torch.float16, 264, "head_dim must be a multiple of 8 and at most 256, got 264"),
    ],
)
def test_what_the_tensor_cores_do_not_take_is_named(
    emulated: dict[str, Family], name: str, dtype: torch.dtype, head_dim: int, message: str
) -> None:
    qkv = (torch.zeros(1, 1, 4, head_dim, dtype=dtype),) * 3
    with pytest.raises(RuntimeError, match=message):
        ops.attention(emulated[name], *qkv, 1.0, *ops.diagonals(FULL, 4, 4))


@pytest.mark.gpu
@pytest.mark.skipif(tiled_async.why_unavailable("cuda") is not None, reason=str(tiled_async.why_unavailable("cuda")))
class TestOnTheGPU:
    LARGER = (
        Problem(2, 4, 2, 1000, 1030, 64, "bf16", CAUSAL),
        Problem(1, 4, 1, 515, 515, 128, "fp16", Mask("window", 100, 0)),
        Problem(1, 2, 2, 300, 700, 192, "bf16", FULL),
    )
    IMPLEMENTATIONS = pytest.mark.parametrize("impl", [tiled_mma, tiled_async], ids=lambda impl: impl.name)

    @IMPLEMENTATIONS
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("problem", [*PROBLEMS, *LARGER], ids=lambda problem: problem.id)
    def test_numbers(self, impl: Implementation, problem: Problem, dtype: torch.dtype) -> None:
        qkv = inputs(problem, "cuda", dtype)
        out, lse = impl(*qkv, problem, return_lse=True)
        assert_right(out, lse, qkv, problem, backward=impl.capabilities.backward)

    @pytest.mark.parametrize("problem", [*PROBLEMS, *LARGER], ids=lambda problem: problem.id)
    def test_deterministic_backward_repeats_its_bits(self, problem: Problem) -> None:
        qkv = inputs(problem, "cuda", dtype_of(problem))
        out, lse = tiled_async(*qkv, problem, return_lse=True)
        torch.use_deterministic_algorithms(True)
        try:
            assert_right(out, lse, qkv, problem, backward=True, use_lse=True)
            first, second = (gradients(out, lse, qkv, True) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_offsets_past_32_bits(self) -> None:
        """k and v have 2.7e9 numbers each; the last head lies past the first 2^31 of them."""
        q = (
            torch.randn(1, 40, 1, 64, device="cuda", dtype=torch.bfloat16) * 6
        )  # few keys have weight, so sums are not small
        k, v = (torch.randn(1, 40, 1 << 20, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        problem = Problem(1, 40, 40, 1, 1 << 20, 64, "bf16", FULL)
        qkv = tuple(x.requires_grad_() for x in (q, k, v))
        dout = torch.randn_like(q)
        out = tiled_async(*qkv, problem)
        got = [out, tiled_mma(*(x.detach() for x in qkv), problem), *torch.autograd.grad(out, qkv, dout)]
        last = tuple(x[:, -1:].detach().double().requires_grad_() for x in qkv)
        expected = (last[0] @ last[1].mT * problem.softmax_scale).softmax(-1) @ last[2]
        wanted = [expected, expected, *torch.autograd.grad(expected, last, dout[:, -1:].double())]
        for x, y in zip(got, wanted, strict=True):
            assert (x[:, -1:] - y).abs().max() <= 2e-2 * y.abs().max()

    def test_opcheck(self) -> None:
        problem = PROBLEMS[0]
        qkv = inputs(problem, "cuda", torch.bfloat16)
        rest = (0.5, *ops.diagonals(problem.mask, problem.q_len, problem.kv_len))
        for family in (MMA, ASYNC):
            ops.load(family)
        plain = [x.detach() for x in qkv]
        torch.library.opcheck(torch.ops.attn_tiled.mma_forward, [*plain, *rest])
        torch.library.opcheck(torch.ops.attn_tiled.async_forward, [*qkv, *rest])
        out, lse = torch.ops.attn_tiled.async_forward(*plain, *rest)
        saved = [torch.ones_like(out), *plain, out, lse]
        for dlse in (None, torch.ones_like(lse)):
            for backward in (torch.ops.attn_tiled.async_backward, torch.ops.attn_tiled.async_backward_deterministic):
                utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
                torch.library.opcheck(backward, [*saved, dlse, *rest], test_utils=utils)

    @IMPLEMENTATIONS
    def test_graph_on_another_stream_computes_on_new_inputs(self, impl: Implementation) -> None:
        assert_graph_computes_on_new_inputs(impl)

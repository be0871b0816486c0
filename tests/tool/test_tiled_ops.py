"""The operators' contracts: schema, fake kernels, autograd registration, errors before work, threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.tiled import CPU, SEQ, ops, tiled_cpu
from attn_impls.tiled.ops import Family
from pytest_attn.out_of_memory import is_out_of_memory

FAMILIES = pytest.mark.parametrize("family", [SEQ, CPU], ids=lambda family: family.name)


def arguments(requires_grad: bool = False) -> list[object]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 9, 4, 8, generator=generator).transpose(1, 2)
    k, v = (torch.randn(2, 2, 11, 8, generator=generator) for _ in range(2))
    return [*(x.requires_grad_(requires_grad) for x in (q, k, v)), 0.5, *ops.diagonals(CAUSAL, 9, 11)]


@FAMILIES
def test_opcheck(family: Family) -> None:
    ops.load(family)
    forward = getattr(torch.ops.attn_tiled, f"{family.name}_forward")
    backward = getattr(torch.ops.attn_tiled, f"{family.name}_backward")
    torch.library.opcheck(forward, arguments(requires_grad=True))
    q, k, v, *rest = arguments()
    out, lse = forward(q, k, v, *rest)
    for dlse in (None, torch.ones_like(lse)):
        torch.library.opcheck(backward, [torch.ones_like(out), q, k, v, out, lse, dlse, *rest])


@FAMILIES
def test_no_room_is_said_to_be_that(family: Family) -> None:
    # Results of 4 PiB, beyond what a process can address.
    q, kv = (torch.randn(1, heads, 2, 16).expand(2**44, heads, 2, 16) for heads in (2, 1))
    with pytest.raises(RuntimeError, match=r"can't allocate memory|could not allocate \d+ bytes") as raised:
        ops.attention(family, q, kv, kv, 1.0, *ops.diagonals(CAUSAL, 2, 2))
    assert is_out_of_memory(raised.value)


@FAMILIES
def test_compiles_without_graph_breaks(family: Family) -> None:
    args = arguments(requires_grad=True)
    ops.load(family)  # a build inside a trace would be a graph break

    def loss(*args: object) -> torch.Tensor:
        out, lse = ops.attention(family, *args)
        return out.square().sum() + lse.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        torch.autograd.grad(compiled(*args), args[:3]), torch.autograd.grad(loss(*args), args[:3]), strict=True
    ):
        torch.testing.assert_close(got, expected)


@FAMILIES
def test_call_that_needs_no_gradient_goes_past_the_derivative(family: Family) -> None:
    """The derivative's Python takes longer than all other work on the host, and does nothing there."""

    def functions_called(*args: object) -> tuple[torch.Tensor, set[str]]:
        called: set[str] = set()
        sys.setprofile(lambda frame, event, argument: called.add(frame.f_code.co_name))
        try:
            out, _ = ops.attention(family, *args)
        finally:
            sys.setprofile(None)
        return out, called

    ops.load(family)
    out, called = functions_called(*arguments(requires_grad=True))
    assert out.requires_grad
    assert "autograd_impl" in called
    with torch.no_grad():
        same, of_no_grad = functions_called(*arguments(requires_grad=True))
    plain, of_plain = functions_called(*arguments())
    assert "autograd_impl" not in of_no_grad | of_plain
    assert torch.equal(out, same)
    assert torch.equal(out, plain)


def test_transforms_are_refused_and_not_taken_for_constants() -> None:
    q, k, v, *rest = arguments()
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda q: ops.attention(CPU, q, k, v, *rest)[0].sum())(q)


@FAMILIES
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q.double(), k.double(), v.double()), "q must be float32, bfloat16 or float16"),
        (lambda q, k, v: (q, k.half(), v), "k and q differ in dtype"),
        (lambda q, k, v: (q[0], k, v), r"q must be \[batch, heads, seq, head_dim\], got \[4, 9, 8\]"),
        (lambda q, k, v: (q, k[..., :4], v), r"k \[2, 2, 11, 4\] must have head_dim 8"),
        (lambda q, k, v: (q, k, v[:, :, 1:]), "differ in shape"),
        (lambda q, k, v: (q[:1], k, v), "differ in batch"),
        (lambda q, k, v: (q[:, :3], k, v), "must divide the heads of q"),
    ],
)
def test_wrong_arguments_are_named(family: Family, change: object, message: str) -> None:
    q, k, v, *rest = arguments()
    with pytest.raises(RuntimeError, match=message):
        ops.attention(family, *change(q, k, v), *rest)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_errors_are_whole_beside_a_second_cpp_library(tmp_path: Path) -> None:
    # Linked with a C++ library of its own, as one toolchain does unasked, what prints numbers to a stream breaks.
    archive = subprocess.run(["g++", "-print-file-name=libstdc++.a"], capture_output=True, text=True, check=True)
    if not Path(archive.stdout.strip()).is_absolute():
        pytest.skip("needs the static C++ library of g++")
    compiler = tmp_path / "g++-static"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -static-libstdc++\n')
    compiler.chmod(0o755)
    script = tmp_path / "wrong.py"
    script.write_text(
        "import torch\n"
        "from attn_impls.tiled import SEQ, ops\n"
        "x = torch.zeros(1, 2, 3, 8)\n"
        "for wrong in ((x, x[..., :4], x), [x.to(torch.uint16)] * 3):\n"
        "    try:\n"
        "        ops.attention(SEQ, *wrong, 1.0, 0, 0)\n"
        "    except RuntimeError as error:\n"
        "        print(str(error).splitlines()[0])\n"
    )
    built_there = {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], env=os.environ | built_there, capture_output=True, text=True)
    expected = ["k [1, 2, 3, 4] must have head_dim 8", "q must be float32, bfloat16 or float16"]
    assert (done.stdout.splitlines(), done.returncode) == (expected, 0), done.stderr


@FAMILIES
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), 1e-46, 3e38])  # the last two are not, in fp32 log2 units
def test_scale_must_be_positive(family: Family, scale: float) -> None:
    q, k, v, _, *rest = arguments()
    with pytest.raises(RuntimeError, match="scale must be positive"):
        ops.attention(family, q, k, v, scale, *rest)


@FAMILIES
def test_backward_checks_what_was_saved(family: Family) -> None:
    q, k, v, *rest = arguments()
    out, lse = ops.attention(family, q, k, v, *rest)
    backward = getattr(torch.ops.attn_tiled, f"{family.name}_backward")
    with pytest.raises(RuntimeError, match=r"dout \[2, 4, 8, 8\] must have the shape of q \[2, 4, 9, 8\]"):
        backward(out[:, :, 1:], q, k, v, out, lse, None, *rest)
    with pytest.raises(RuntimeError, match=r"must be contiguous float32 \[batch, heads, q_len\], got \[2, 4, 8\]"):
        backward(out, q, k, v, out, lse[..., 1:], None, *rest)


@FAMILIES
def test_operator_itself_wants_contiguous_rows(family: Family) -> None:
    q, k, v, *rest = arguments()
    ops.load(family)
    with pytest.raises(RuntimeError, match="q must be contiguous in its last dimension, its stride there is 9"):
        getattr(torch.ops.attn_tiled, f"{family.name}_forward")(q.mT.contiguous().mT, k, v, *rest)


def test_diagonals_reach_the_operators_as_64_bit_integers() -> None:
    assert ops.diagonals(FULL, 3, 5) == (-(2**63), 2**63 - 1)
    assert ops.diagonals(CAUSAL, 3, 5) == (-(2**63), 2)
    assert ops.diagonals(Mask("window", 2**80, 2**80), 3, 5) == (-(2**63), 2**63 - 1)


@pytest.fixture
def threads() -> object:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_bits_do_not_depend_on_threads(threads: object, kv_heads: int) -> None:
    problem = Problem(1, 4, kv_heads, 300, 300, 32, "fp32", CAUSAL)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 300, 32, generator=generator).requires_grad_()
    k, v = (torch.randn(1, kv_heads, 300, 32, generator=generator).requires_grad_() for _ in range(2))

    def run(count: int) -> list[torch.Tensor]:
        threads(count)
        out, lse = tiled_cpu(q, k, v, problem, return_lse=True)
        return [out, lse, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))]

    one = run(1)
    for count in (2, 3, 2):
        assert all(torch.equal(a, b) for a, b in zip(one, run(count), strict=True))

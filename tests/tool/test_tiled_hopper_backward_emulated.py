"""The source of ``tiled-ws``, backward, on an emulated block, as ``test_tiled_hopper_emulated.py`` has the forward.

Additions to dQ take place when they are waited for, and a block that waits for another's finds them done or fails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.tiled import WS, ops
from attn_impls.tiled.ops import Family
from tests.tool.test_tiled_tensor_cores import assert_right, dtype_of, emulate, inputs

TOP_LEFT = Mask("causal_top_left")
# Both tiles; more than two tiles of queries for one of keys; ragged ends of both; groups of heads; queries and keys
# that see nothing; head dims that fill no slab. Blocks run one after the other, so that the first takes up all keys: up
# to eight tiles of them, across heads and batches, while the others find none.
PROBLEMS = [
    Problem(1, 1, 1, 64, 128, 64, "bf16", FULL),
    Problem(1, 2, 1, 400, 300, 64, "fp16", FULL),
    Problem(1, 1, 1, 300, 140, 40, "bf16", CAUSAL),
    Problem(1, 4, 2, 1, 300, 64, "fp16", CAUSAL),
    Problem(1, 2, 2, 130, 260, 128, "bf16", CAUSAL),
    Problem(1, 2, 1, 330, 150, 128, "fp16", Mask("window", 100, 20)),
    Problem(1, 2, 2, 70, 290, 72, "bf16", TOP_LEFT),
    Problem(2, 4, 2, 130, 150, 64, "fp16", CAUSAL),
    Problem(0, 2, 2, 5, 5, 64, "bf16", CAUSAL),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return emulate(WS, tmp_path_factory.mktemp("ws"))


@pytest.mark.parametrize("deterministic", [False, True], ids=["any-order", "one-order"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_backward_runs_right_on_an_emulated_block(emulated: Family, problem: Problem, deterministic: bool) -> None:
    qkv = inputs(problem, "cpu", dtype_of(problem))
    args = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
    # Deterministic mode also makes torch fill what it allocates with NaN.
    torch.use_deterministic_algorithms(deterministic)
    try:
        out, lse = ops.attention(emulated, *qkv, problem.softmax_scale, *args)
        assert_right(out, lse, qkv, problem, backward=True, use_lse=deterministic)
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_that_never_called_the_runtime_make_maps(emulated: Family) -> None:
    """As autograd's thread, whose first call of CUDA may be the operator's."""
    ops.load(emulated)
    q, k, v = (torch.randn(1, 1, 100, 64, dtype=torch.bfloat16) for _ in range(3))
    diagonals = ops.diagonals(CAUSAL, 100, 100)
    forward = getattr(torch.ops.attn_tiled, f"{emulated.name}_forward")

    def elsewhere(call: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(call).result()

    out, lse = elsewhere(lambda: forward(q, k, v, 0.125, *diagonals))
    for name in emulated.backward_names:
        operator = getattr(torch.ops.attn_tiled, name)
        dq, *_ = elsewhere(functools.partial(operator, out, q, k, v, out, lse, None, 0.125, *diagonals))
        assert dq.isfinite().all()


def test_an_empty_band_has_no_gradients(emulated: Family) -> None:
    """Diagonals that cross hide everything; which blocks add to a tile of dQ must not depend on who asks."""
    ops.load(emulated)
    q, k, v = (torch.randn(1, 1, 200, 64, dtype=torch.bfloat16) for _ in range(3))
    out, lse = torch.zeros_like(q), torch.full((1, 1, 200), -torch.inf)
    for name in emulated.backward_names:
        operator = getattr(torch.ops.attn_tiled, name)
        assert not any(x.any() for x in operator(torch.randn_like(q), q, k, v, out, lse, None, 0.125, 5, 3))


@pytest.mark.parametrize(
    ("head_dim", "dtype", "message"),
    [
        (136, torch.bfloat16, "head_dim must be at most 128, got 136"),
        (64, torch.float32, "q must be bfloat16 or float16, got float32"),
    ],
)
def test_what_the_backward_does_not_take_is_named(
    emulated: Family, head_dim: int, dtype: torch.dtype, message: str
) -> None:
    ops.load(emulated)
    q = torch.zeros(1, 1, 4, head_dim, dtype=dtype)
    for name in emulated.backward_names:
        with pytest.raises(RuntimeError, match=message):
            getattr(torch.ops.attn_tiled, name)(q, q, q, q, q, torch.zeros(1, 1, 4), None, 1.0, 0, 0)

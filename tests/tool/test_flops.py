"""Our FLOP formula beside PyTorch's counter: where they agree and where not (docs/flops.md)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from attn_impls import Mask, Problem, discover
from attn_impls.problem import CAUSAL, FULL

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="the page says what torch 2.13 counts"
)
aten = torch.ops.aten
PROBLEMS = [
    Problem(2, 4, 4, 32, 32, 16, "fp32", FULL),
    Problem(2, 4, 4, 32, 32, 16, "fp32", CAUSAL),
    Problem(2, 4, 4, 32, 32, 16, "fp32", Mask("window", 7, 0)),
    Problem(2, 4, 2, 32, 32, 16, "fp32", CAUSAL),
]


def inputs(problem: Problem, device: str = "cpu", grad: bool = False) -> list[torch.Tensor]:
    shapes = ((problem.heads, problem.q_len), (problem.kv_heads, problem.kv_len), (problem.kv_heads, problem.kv_len))
    return [
        torch.ones(problem.batch, heads, length, problem.head_dim, device=device, requires_grad=grad)
        for heads, length in shapes
    ]


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
@pytest.mark.parametrize(
    ("name", "fwd", "bwd"),
    [
        ("naive", 1.0, 2.0),  # four products backward: the scores are kept
        ("sdpa-math", 1.0, 2.0),
        ("tiled-torch", 1.0, 2.5),
        ("sdpa-flash", 0.0, 0.0),  # the CPU's operator has no formula
    ],
)
def test_counter_on_cpu(name: str, fwd: float, bwd: float, problem: Problem) -> None:
    impl = discover()[name]
    outputs: list[torch.Tensor] = []
    q, k, v = inputs(problem, grad=True)
    assert counted(lambda: outputs.append(impl(q, k, v, problem))) == fwd * problem.dense_flops()
    assert counted(lambda: torch.autograd.grad(outputs[0].sum(), (q, k, v))) == bwd * problem.dense_flops()


def causal_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)


def causal_efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
    return aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, True)


def causal_cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
    return aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("operator", [causal_flash, causal_efficient, causal_cudnn])
def test_counter_on_cuda_operators_ignores_the_mask(operator: Callable[..., object], kv_heads: int) -> None:
    problem = Problem(2, 4, kv_heads, 32, 32, 16, "bf16", CAUSAL)
    q, k, v = (tensor.to(torch.bfloat16) for tensor in inputs(problem, "meta"))
    assert counted(lambda: operator(q, k, v)) == problem.dense_flops() > problem.flops()


def test_counter_on_the_backward_of_a_cuda_operator() -> None:
    problem = Problem(2, 4, 2, 32, 32, 16, "bf16", CAUSAL)
    q, k, v = (tensor.to(torch.bfloat16).requires_grad_() for tensor in inputs(problem, "meta"))
    out = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
    assert counted(lambda: torch.autograd.grad(out, (q, k, v), out.detach())) == problem.dense_flops("bwd")


def test_formula_of_flex_attention_ignores_the_mask() -> None:
    # Called as it is, flex_attention does not run under the counter, so its formula is asked directly.
    problem = Problem(2, 4, 2, 32, 32, 16, "fp32", CAUSAL)
    assert flop_registry[torch.ops.higher_order.flex_attention](*inputs(problem, "meta")) == problem.dense_flops()


def test_counter_misses_operators_without_a_formula() -> None:
    @torch.library.custom_op("attn_test_flops::matmul", mutates_args=())
    def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b

    a = torch.ones(8, 8)
    assert counted(lambda: matmul(a, a)) == 0
    assert counted(lambda: a @ a) == 2 * 8**3

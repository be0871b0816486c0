"""What of the FlashAttention packages can be told without them."""

from __future__ import annotations

import itertools

import torch

from attn_impls import Direction, Problem
from attn_impls.flash import flash_attn
from attn_impls.problem import FULL, Mask


def seen(problem: Problem, left: int | None, right: int | None) -> list[list[bool]]:
    """Which keys each query sees within a window, aligned at the bottom right."""
    away = problem.kv_len - problem.q_len
    ends = (-(10**6) if left is None else -left, 10**6 if right is None else right)
    return [
        [ends[0] <= key - query - away <= ends[1] for key in range(problem.kv_len)] for query in range(problem.q_len)
    ]


def as_flash_attn_does(problem: Problem, left: int, right: int) -> list[list[bool]]:
    """The same as flash-attn's C++ has it; -1 is no end."""
    left, right = (-1 if end >= problem.kv_len else end for end in (left, right))
    if left < 0 and right < 0:
        return seen(problem, None, None)
    return seen(problem, *(problem.kv_len if end < 0 else end for end in (left, right)))


def test_windows_are_a_capability_where_flash_attn_means_the_same() -> None:
    ends = [None, *range(7)]
    refused = 0
    for q_len, kv_len, left, right in itertools.product(range(1, 6), range(1, 6), ends, ends):
        if left is None and right is None:
            continue
        problem = Problem(1, 1, 1, q_len, kv_len, 64, "bf16", Mask("window", left, right))
        given = (-1 if end is None else end for end in (left, right))
        right_there = seen(problem, left, right) == as_flash_attn_does(problem, *given)
        why = flash_attn.capabilities.why_not(problem, Direction.FWD, "cuda")
        assert (why is None) == right_there, (problem.id, why)
        refused += why is not None
    assert refused > 100


def test_an_empty_batch_is_empty_and_has_gradients() -> None:
    problem = Problem(0, 4, 2, 7, 9, 64, "bf16", FULL)
    q, k, v = (torch.empty(0, heads, n, 64, requires_grad=True) for heads, n in ((4, 7), (2, 9), (2, 9)))
    out = flash_attn.fn(q, k, v, problem)
    gradients = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
    assert out.shape == q.shape
    assert [each.shape for each in gradients] == [q.shape, k.shape, v.shape]

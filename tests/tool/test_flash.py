"""What of the FlashAttention packages can be told without them."""

from __future__ import annotations

import pytest
import torch

from attn_impls import Direction, Problem
from attn_impls.flash import flash_attn
from attn_impls.problem import FULL, Mask


@pytest.mark.parametrize(
    ("q_len", "mask", "taken"),
    [
        (3, Mask("window", 0, None), False),
        (2, Mask("window", 0, None), True),
        (3, Mask("window", None, 0), True),
        (3, Mask("window", 0, 5), True),
        (3, FULL, True),
    ],
)
def test_windows_of_which_it_loses_keys_are_no_capability(q_len: int, mask: Mask, taken: bool) -> None:
    why = flash_attn.capabilities.why_not(Problem(1, 1, 1, q_len, 1, 64, "bf16", mask), Direction.FWD, "cuda")
    assert why == (None if taken else "loses keys of a window without a right end where q_len > kv_len + 1")


def test_an_empty_batch_is_empty_and_has_gradients() -> None:
    problem = Problem(0, 4, 2, 7, 9, 64, "bf16", FULL)
    q, k, v = (torch.empty(0, heads, n, 64, requires_grad=True) for heads, n in ((4, 7), (2, 9), (2, 9)))
    out = flash_attn.fn(q, k, v, problem)
    gradients = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
    assert out.shape == q.shape
    assert [each.shape for each in gradients] == [q.shape, k.shape, v.shape]

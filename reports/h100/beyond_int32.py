"""Gradients of a whole problem against those of its batches one by one, around 2^31 elements of q.

``python reports/h100/beyond_int32.py NAME`` prints a line for each problem: in which batches more than a thousandth of
the elements differ, by more than 3 % of the batch's root mean square and 5 % of themselves, and how many do. ``NAME``
is an implementation's. Nothing of the suite takes part, and an implementation is compared with itself alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script from anywhere

from attn_impls import Implementation, Problem, discover
from attn_impls.problem import CAUSAL, FULL, Mask

PROBLEMS = (
    *(Problem(batch, 32, 32, 4096, 4096, 128, "bf16", CAUSAL) for batch in (127, 129, 132, 140)),
    *(Problem(3, 8, 8, q_len, 64, 128, "bf16", FULL) for q_len in (698880, 720896)),
)
RESULTS = ("out", "dq", "dk", "dv")


def gradients(impl: Implementation, inputs: list[torch.Tensor], mask: Mask) -> list[torch.Tensor]:
    """Return ``out, dq, dk, dv`` on ``q, k, v, dout``, ``[batch, heads, length, head_dim]``."""
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    (batch, heads, q_len, head_dim), kv_len = q.shape, k.shape[2]
    out = impl(q, k, v, Problem(batch, heads, heads, q_len, kv_len, head_dim, "bf16", mask))
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3])]


def differing(whole: torch.Tensor, alone: torch.Tensor) -> float:
    """Return the share of elements that differ."""
    allowed = 0.03 * alone.float().square().mean().sqrt() + 0.05 * alone.abs()
    return int((~((whole - alone).abs() <= allowed)).sum()) / alone.numel()


def look(impl: Implementation, problem: Problem) -> str:
    """Return the line of one problem."""
    torch.manual_seed(0)
    lengths = (problem.q_len, problem.kv_len, problem.kv_len, problem.q_len)
    inputs = [
        torch.randn(problem.batch, problem.heads, n, problem.head_dim, device="cuda", dtype=torch.bfloat16)
        for n in lengths
    ]
    whole = gradients(impl, inputs, problem.mask)
    found: dict[str, dict[int, float]] = {name: {} for name in RESULTS}
    for b in range(problem.batch):
        alone = gradients(impl, [x[b : b + 1] for x in inputs], problem.mask)
        for name, together, single in zip(RESULTS, whole, alone, strict=True):
            if (share := differing(together[b], single[0])) > 1e-3:
                found[name][b] = share
    beyond = problem.batch * problem.heads * problem.q_len * problem.head_dim - 2**31
    wrong = [
        f"{name} wrong in {len(shares)} batches, {min(shares)} to {max(shares)}, in {max(shares.values()):.1%} at most"
        for name, shares in found.items()
        if shares
    ]
    return f"{impl.name} {problem.id}, 2^31{beyond:+d} elements: {'; '.join(wrong) or 'right'}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: beyond_int32.py NAME")
    for each in PROBLEMS:
        print(look(discover().resolve(sys.argv[1]), each), flush=True)

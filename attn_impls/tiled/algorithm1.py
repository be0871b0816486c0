"""``tiled-torch``: FlashAttention-2, block by block, in plain PyTorch.

Algorithm 1 (forward) and Algorithm 2 (backward) of T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism
and Work Partitioning", 2023, arXiv:2307.08691, written to be read beside the paper. The softmax of a row is never seen
whole: blocks of keys are summarised one after the other, and :func:`merge` joins the summaries. The compiled kernels
do the same, so this file is where to look first when one of them puzzles.

Shapes: queries are ``[batch, kv_heads, group, rows, head_dim]``, keys and values
``[batch, kv_heads, 1, columns, head_dim]``. Query heads that share a key head are a dimension of their own, so that
broadcasting does the grouping and no key is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from attn_impls.problem import Problem

BLOCK = 128  # queries and keys a block
Tensor = torch.Tensor


class Partial(NamedTuple):
    """What a row of queries knows after some of its keys.

    Attributes:
        maximum: the highest score, ``[..., rows, 1]``; -inf before any visible key.
        total: the sum of ``exp(score - maximum)``, ``[..., rows, 1]``.
        weighted: the sum of ``exp(score - maximum) * value``, ``[..., rows, head_dim]``.
    """

    maximum: Tensor
    total: Tensor
    weighted: Tensor


def summarize(scores: Tensor, values: Tensor) -> Partial:
    """Summarize one block: ``scores`` ``[..., rows, columns]`` and ``values`` ``[..., columns, head_dim]``."""
    maximum = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - _finite(maximum))
    return Partial(maximum, weights.sum(dim=-1, keepdim=True), weights @ values)


def merge(a: Partial, b: Partial) -> Partial:
    """Join what is known of two disjoint sets of keys (online softmax; Milakov and Gimelshein, arXiv:1805.02867).

    Both sides are brought to the common maximum, after which they add up. Any order and any nesting gives the same
    result, up to rounding. With the identity for values, the weighted sum over the total is the softmax itself:

    >>> values = torch.eye(4)
    >>> left = summarize(torch.tensor([[1.0, 2.0]]), values[:2])
    >>> right = summarize(torch.tensor([[3.0, 4.0]]), values[2:])
    >>> both = merge(left, right)
    >>> whole = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).softmax(dim=-1)
    >>> torch.allclose(both.weighted / both.total, whole)
    True
    """
    maximum = torch.maximum(a.maximum, b.maximum)
    of_a = torch.exp(a.maximum - _finite(maximum))
    of_b = torch.exp(b.maximum - _finite(maximum))
    return Partial(maximum, a.total * of_a + b.total * of_b, a.weighted * of_a + b.weighted * of_b)


def _finite(maximum: Tensor) -> Tensor:
    """Put 0 in place of -inf: then ``exp(-inf - 0)`` is 0, where ``exp(-inf - -inf)`` would be NaN."""
    return maximum.masked_fill(maximum.isneginf(), 0.0)


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))


def _visible_blocks(rows: slice, problem: Problem, device: torch.device) -> Iterator[tuple[slice, Tensor | None]]:
    """Yield each block of keys that some query of ``rows`` sees, and its mask ``[rows, columns]``, if it needs one."""
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    for columns in _blocks(problem.kv_len):
        # The key minus the query runs from here to there inside the block.
        least, most = columns.start - (rows.stop - 1), (columns.stop - 1) - rows.start
        if (low is not None and most < low) or (high is not None and least > high):
            continue
        if (low is None or least >= low) and (high is None or most <= high):
            yield columns, None
            continue
        keys = torch.arange(columns.start, columns.stop, device=device)
        diagonal = keys - torch.arange(rows.start, rows.stop, device=device)[:, None]
        visible = torch.ones_like(diagonal, dtype=torch.bool)
        if low is not None:
            visible &= diagonal >= low
        if high is not None:
            visible &= diagonal <= high
        yield columns, visible


def _scores(q: Tensor, k: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    scores = scale * (q @ k.mT)
    return scores if visible is None else scores.masked_fill(~visible, float("-inf"))


class _Attention(torch.autograd.Function):
    """``(q, k, v, problem) -> (out, lse)``, with ``lse`` fp32 ``[batch, kv_heads, group, q_len, 1]``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)  # blocks are widened, so that all sums are fp32
        out = torch.empty_like(q)
        lse = q.new_empty((*q.shape[:-1], 1), dtype=wide)
        for rows in _blocks(problem.q_len):
            q_block = q[..., rows, :].to(wide)
            nothing = q_block.new_zeros((*q_block.shape[:-1], 1))
            seen = Partial(nothing - float("inf"), nothing, torch.zeros_like(q_block))
            for columns, visible in _visible_blocks(rows, problem, q.device):
                k_block, v_block = k[..., columns, :].to(wide), v[..., columns, :].to(wide)
                scores = _scores(q_block, k_block, visible, problem.softmax_scale)
                seen = merge(seen, summarize(scores, v_block))
            # A row that saw no key has total 0: its output is 0 by convention, and its log-sum-exp -inf.
            out[..., rows, :] = (seen.weighted / seen.total.masked_fill(seen.total == 0, 1.0)).to(q.dtype)
            lse[..., rows, :] = seen.maximum + seen.total.log()
        ctx.problem = problem
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        problem: Problem = ctx.problem
        wide = lse.dtype
        dout = torch.zeros_like(out) if dout is None else dout
        dq = torch.empty_like(q)
        dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for rows in _blocks(problem.q_len):
            q_block, do_block = q[..., rows, :].to(wide), dout[..., rows, :].to(wide)
            delta = (do_block * out[..., rows, :].to(wide)).sum(dim=-1, keepdim=True)
            if dlse is not None:
                delta = delta - dlse[..., rows, :]
            dq_block = torch.zeros_like(q_block)
            for columns, visible in _visible_blocks(rows, problem, q.device):
                k_block, v_block = k[..., columns, :].to(wide), v[..., columns, :].to(wide)
                scores = _scores(q_block, k_block, visible, problem.softmax_scale)
                # Recomputed from the log-sum-exp: cheaper than to keep the weights, which are as large as the scores.
                weights = torch.exp(scores - _finite(lse[..., rows, :]))
                dscores = weights * (do_block @ v_block.mT - delta) * problem.softmax_scale
                dq_block += dscores @ k_block
                # The query heads of a group add up in the key head that they share.
                dk[..., columns, :] += (dscores.mT @ q_block).sum(dim=2, keepdim=True)
                dv[..., columns, :] += (weights.mT @ do_block).sum(dim=2, keepdim=True)
            dq[..., rows, :] = dq_block.to(q.dtype)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None


def attention(q: Tensor, k: Tensor, v: Tensor, problem: Problem, *, return_lse: bool = False) -> Any:
    """FlashAttention-2's Algorithm 1 in plain PyTorch, block by block, forward and backward."""
    grouped = torch.unflatten(q, 1, (problem.kv_heads, problem.heads // problem.kv_heads))
    out, lse = _Attention.apply(grouped, k.unsqueeze(2), v.unsqueeze(2), problem)  # type: ignore[no-untyped-call]
    out = out.flatten(1, 2)
    return (out, lse.flatten(1, 2).squeeze(-1)) if return_lse else out

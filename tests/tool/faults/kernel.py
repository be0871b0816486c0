"""One right kernel in plain PyTorch, cut into steps that a planted fault replaces.

Keys are walked tile by tile with the online softmax, weights are rounded to the dtype before they meet the values,
sums are fp32, and the backward pass computes the weights again from the log-sum-exp, as fused kernels do it
(FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2). A fault is a subclass that overrides one or two steps.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from attn_impls import Capabilities, Implementation
from attn_impls.problem import MASK_KINDS, Problem

Tensor = torch.Tensor
Grads = tuple[Tensor, Tensor, Tensor]

EVERYTHING = Capabilities(
    devices=frozenset({"cpu"}),
    masks=frozenset(MASK_KINDS),
    gqa=True,
    rectangular=True,
    empty_rows=True,
    softcap=True,
    scale=True,
    returns_lse=True,
)


def finite(tensor: Tensor) -> Tensor:
    """Put 0 in place of -inf, so that exp(-inf - it) is 0 and not NaN."""
    return tensor.masked_fill(tensor.isneginf(), 0.0)


class Kernel:
    """The right one. ``q``, ``k``, ``v`` inside are fp32 ``[batch, heads, length, head_dim]``."""

    tile: ClassVar[int] = 32
    capabilities: ClassVar[Capabilities] = EVERYTHING

    # What is read and which problem is solved.

    def scale(self, problem: Problem) -> float:
        return problem.softmax_scale

    def softcap(self, problem: Problem) -> float | None:
        return problem.softcap

    def diagonals(self, problem: Problem) -> tuple[int | None, int | None]:
        return problem.mask.diagonals(problem.q_len, problem.kv_len)

    def kv_head(self, problem: Problem) -> Tensor:
        """Key head of each query head."""
        return torch.arange(problem.heads) // (problem.heads // problem.kv_heads)

    def read_q(self, q: Tensor, problem: Problem) -> Tensor:
        return q.float()

    def read_kv(self, kv: Tensor, problem: Problem) -> Tensor:
        return kv.float()

    def tiles(self, problem: Problem) -> list[slice]:
        return [slice(a, min(a + self.tile, problem.kv_len)) for a in range(0, problem.kv_len, self.tile)]

    # One tile of scores.

    def scores(self, q: Tensor, k: Tensor, columns: slice, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """Masked logits of one tile, and their derivative by the capped ones."""
        logits = self.scale(problem) * (q @ k[:, :, columns].mT)
        cap, slope = self.softcap(problem), None
        if cap is not None:
            squashed = torch.tanh(logits / cap)
            logits, slope = cap * squashed, 1 - squashed.square()
        return self.mask(logits, columns, problem), slope

    def visible(self, columns: slice, problem: Problem) -> Tensor:
        low, high = self.diagonals(problem)
        diagonal = torch.arange(columns.start, columns.stop) - torch.arange(problem.q_len)[:, None]
        seen = torch.ones_like(diagonal, dtype=torch.bool)
        seen = seen if low is None else seen & (diagonal >= low)
        return seen if high is None else seen & (diagonal <= high)

    def mask(self, logits: Tensor, columns: slice, problem: Problem) -> Tensor:
        return logits.masked_fill(~self.visible(columns, problem), -torch.inf)

    # The online softmax.

    def exp(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def top(self, top: Tensor, scores: Tensor) -> Tensor:
        return torch.maximum(top, scores.amax(dim=-1, keepdim=True))

    def rescale(self, total: Tensor, acc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return total * factor, acc * factor

    def low(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Round the weights for the product with the values."""
        return weights.to(dtype).float()

    def unseen(self, weights: Tensor, columns: slice, problem: Problem) -> Tensor:
        """What is done to the weights after the exponential: nothing, the mask was applied before."""
        return weights

    def accumulate(self, acc: Tensor, weights: Tensor, v: Tensor) -> Tensor:
        return acc + weights @ v

    def divide(self, acc: Tensor, total: Tensor, v: Tensor) -> Tensor:
        return acc / total.masked_fill(total == 0, 1.0)

    def lse(self, top: Tensor, total: Tensor) -> Tensor:
        return (top + total.log()).squeeze(-1)

    def store(self, result: Tensor, like: Tensor) -> Tensor:
        out = torch.empty_like(like)
        out.copy_(result)
        return out

    def forward(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        wide_q = self.read_q(q, problem)
        heads = self.kv_head(problem)
        wide_k, wide_v = (self.read_kv(x, problem)[:, heads] for x in (k, v))
        total = wide_q.new_zeros((*q.shape[:-1], 1))
        top, acc = total - torch.inf, wide_q.new_zeros(q.shape)
        for columns in self.tiles(problem):
            scores, _ = self.scores(wide_q, wide_k, columns, problem)
            new = self.top(top, scores)
            weights = self.exp(scores - finite(new))
            total, acc = self.rescale(total, acc, self.exp(top - finite(new)))
            total = total + weights.sum(dim=-1, keepdim=True)
            weights = self.unseen(self.low(weights, q.dtype), columns, problem)
            acc = self.accumulate(acc, weights, wide_v[:, :, columns])
            top = new
        return self.store(self.divide(acc, total, wide_v), q), self.lse(top, total)

    # The backward pass, with the right log-sum-exp whatever the forward pass returned.

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        return (dout * out).sum(dim=-1, keepdim=True)

    def slope(self, slope: Tensor) -> Tensor:
        return slope

    def low_for_dv(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        return weights.to(dtype).float()

    def add_dq(self, dq: Tensor, dscores: Tensor, k: Tensor, problem: Problem) -> Tensor:
        return dq + self.scale(problem) * (dscores @ k)

    def dk(self, dscores: Tensor, q: Tensor, problem: Problem) -> Tensor:
        return self.scale(problem) * (dscores.mT @ q)

    def dv(self, weights: Tensor, dout: Tensor) -> Tensor:
        return weights.mT @ dout

    def grouped(self, per_head: Tensor, problem: Problem) -> Tensor:
        """Add up the query heads that share a key head: ``[batch, kv_heads, length, head_dim]``."""
        group = problem.heads // problem.kv_heads
        return per_head.unflatten(1, (problem.kv_heads, group)).sum(dim=2)

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, problem: Problem) -> Grads:
        heads = self.kv_head(problem)
        wide_q, wide_do, wide_out = self.read_q(q, problem), dout.float(), out.float()
        wide_k, wide_v = (self.read_kv(x, problem)[:, heads] for x in (k, v))
        tiles = [(columns, *self.scores(wide_q, wide_k, columns, problem)) for columns in self.tiles(problem)]
        lse = finite(torch.cat([scores for _, scores, _ in tiles], dim=-1).logsumexp(dim=-1, keepdim=True))
        delta = self.delta(wide_do, wide_out)
        dq, dk, dv = wide_q.new_zeros(q.shape), torch.zeros_like(wide_k), torch.zeros_like(wide_v)
        for columns, scores, slope in tiles:
            weights = torch.exp(scores - lse)
            dv[:, :, columns] = self.dv(self.low_for_dv(weights, q.dtype), wide_do)
            dscores = weights * (wide_do @ wide_v[:, :, columns].mT - delta)
            if slope is not None:
                dscores = dscores * self.slope(slope)
            dscores = dscores.to(q.dtype).float()
            dq = self.add_dq(dq, dscores, wide_k[:, :, columns], problem)
            dk[:, :, columns] = self.dk(dscores, wide_q, problem)
        return dq.to(q.dtype), self.grouped(dk, problem).to(k.dtype), self.grouped(dv, problem).to(v.dtype)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, *, return_lse: bool = False) -> Any:
        """The function that is registered."""
        out, lse = _Apply.apply(q, k, v, self, problem)
        return (out, lse) if return_lse else out


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, problem: Problem) -> tuple[Tensor, Tensor]:
        out, lse = kernel.forward(q, k, v, problem)
        ctx.kernel, ctx.problem = kernel, problem
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(q, k, v, out)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        return (*ctx.kernel.backward(dout, q, k, v, out, ctx.problem), None, None)


def implementation_of(kernel: type[Kernel], name: str) -> Implementation:
    """Wrap a kernel as what the suite judges."""
    return Implementation(name, kernel().attention, kernel.capabilities, summary=(kernel.__doc__ or "").strip())

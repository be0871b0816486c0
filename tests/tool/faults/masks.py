"""Faults in what is visible, which heads and batches meet, and where a sequence ends."""

from __future__ import annotations

import torch

from attn_impls.problem import Problem
from tests.tool.faults.kernel import Kernel, Tensor


class DiagonalOffByOne(Kernel):
    """The causal mask shows each query one key too many."""

    name = "diagonal off by one"

    def diagonals(self, problem: Problem) -> tuple[int | None, int | None]:
        low, high = super().diagonals(problem)
        return low, high + 1 if problem.mask.kind.startswith("causal") else high


class DiagonalHidden(Kernel):
    """The causal mask hides the diagonal itself, except from the first query."""

    name = "diagonal hidden"

    def visible(self, columns: slice, problem: Problem) -> Tensor:
        seen = super().visible(columns, problem)
        if problem.mask.kind.startswith("causal"):
            _, high = self.diagonals(problem)
            diagonal = torch.arange(columns.start, columns.stop) - torch.arange(problem.q_len)[:, None]
            seen[1:] &= (diagonal != high)[1:]
        return seen


class TopLeftAlignment(Kernel):
    """The causal mask is aligned top-left where the lengths differ."""

    name = "causal aligned top-left"

    def diagonals(self, problem: Problem) -> tuple[int | None, int | None]:
        return (None, 0) if problem.mask.kind == "causal" else super().diagonals(problem)


class BottomRightAlignment(Kernel):
    """The top-left causal mask is aligned bottom-right."""

    name = "top-left mask aligned bottom-right"

    def diagonals(self, problem: Problem) -> tuple[int | None, int | None]:
        top_left = problem.mask.kind == "causal_top_left"
        return (None, problem.kv_len - problem.q_len) if top_left else super().diagonals(problem)


class WindowLeft(Kernel):
    """The window reaches one key too far to the left."""

    name = "window left off by one"

    def diagonals(self, problem: Problem) -> tuple[int | None, int | None]:
        low, high = super().diagonals(problem)
        return None if low is None else low - 1, high


class WindowRight(Kernel):
    """The window reaches one key too few to the right."""

    name = "window right off by one"

    def diagonals(self, problem: Problem) -> tuple[int | None, int | None]:
        low, high = super().diagonals(problem)
        return low, high - 1 if problem.mask.kind == "window" and high is not None else high


class CausalByBlock(Kernel):
    """The causal mask is applied to whole blocks of 16 keys and not inside the block on the diagonal."""

    name = "causal by block"

    def visible(self, columns: slice, problem: Problem) -> Tensor:
        _, high = self.diagonals(problem)
        if not problem.mask.kind.startswith("causal") or high is None:
            return super().visible(columns, problem)
        first_of_block = torch.arange(columns.start, columns.stop) // 16 * 16
        return first_of_block <= torch.arange(problem.q_len)[:, None] + high


class LastTileDropped(Kernel):
    """The last tile of keys is skipped when it is not whole and not the only one."""

    name = "last tile dropped"

    def tiles(self, problem: Problem) -> list[slice]:
        tiles = super().tiles(problem)
        return tiles[:-1] if len(tiles) > 1 and problem.kv_len % self.tile else tiles


class RaggedTail(Kernel):
    """Keys are padded with zeros to whole tiles and the padding is not masked: it takes part in the softmax."""

    name = "ragged tail not masked"

    def divide(self, acc: Tensor, total: Tensor, v: Tensor) -> Tensor:
        # Each padding key has logit 0; relative to the row's maximum it would weigh exp(-maximum).
        return super().divide(acc, total + self.weight_of_padding, v)

    def lse(self, top: Tensor, total: Tensor) -> Tensor:
        return super().lse(top, total + self.weight_of_padding)

    def top(self, top: Tensor, scores: Tensor) -> Tensor:
        new = super().top(top, scores)
        if scores.shape[-1] < self.tile:
            self.weight_of_padding = (self.tile - scores.shape[-1]) * torch.exp(-new)
        else:
            self.weight_of_padding = torch.zeros_like(new)
        return new


class LongSequences(Kernel):
    """Keys from the 257th on are dropped."""

    name = "wrong beyond 256 keys"

    def tiles(self, problem: Problem) -> list[slice]:
        return [tile for tile in super().tiles(problem) if tile.start < 256]


class WrongGroup(Kernel):
    """Query head h reads key head h modulo the number of key heads."""

    name = "wrong key head"

    def kv_head(self, problem: Problem) -> Tensor:
        return torch.arange(problem.heads) % problem.kv_heads


class FirstBatch(Kernel):
    """Every batch element is computed with the keys and values of the first."""

    name = "keys of the first batch element"

    def read_kv(self, kv: Tensor, problem: Problem) -> Tensor:
        return super().read_kv(kv[:1].expand_as(kv), problem)


class EmptyRowsNan(Kernel):
    """A row without a visible key is 0 / 0."""

    name = "empty rows NaN"

    def divide(self, acc: Tensor, total: Tensor, v: Tensor) -> Tensor:
        return acc / total


class EmptyRowsMean(Kernel):
    """A row without a visible key is the mean of all values."""

    name = "empty rows mean"

    def divide(self, acc: Tensor, total: Tensor, v: Tensor) -> Tensor:
        return torch.where(total == 0, v.mean(dim=2, keepdim=True), super().divide(acc, total, v))


class MaskedAfterSoftmax(Kernel):
    """Weights are masked after the softmax, whose sum holds the hidden keys too."""

    name = "mask after softmax"

    def mask(self, logits: Tensor, columns: slice, problem: Problem) -> Tensor:
        return logits

    def unseen(self, weights: Tensor, columns: slice, problem: Problem) -> Tensor:
        return weights.masked_fill(~self.visible(columns, problem), 0.0)


class SoftcapIgnored(Kernel):
    """The softcap is not applied."""

    name = "softcap ignored"

    def softcap(self, problem: Problem) -> float | None:
        return None


class WindowWithoutLeft(Kernel):
    """A window without a left end is taken for one that ends at the diagonal."""

    name = "window left=None read as 0"

    def diagonals(self, problem: Problem) -> tuple[int | None, int | None]:
        low, high = super().diagonals(problem)
        open_left = problem.mask.kind == "window" and problem.mask.left is None
        return problem.kv_len - problem.q_len if open_left else low, high


class LongSixteenBit(Kernel):
    """In 16 bits the output is 0 where both lengths exceed 320."""

    name = "wrong where both lengths exceed 320"

    def zero(self, problem: Problem) -> bool:
        return problem.dtype != "fp32" and problem.q_len > 320 and problem.kv_len > 320

    def forward(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        out, lse = super().forward(q, k, v, problem)
        return torch.zeros_like(out) if self.zero(problem) else out, lse


class HeadDim128(LongSixteenBit):
    """In 16 bits the output is 0 for head_dim 128, causal, with equal lengths from 128 on."""

    name = "wrong for causal head_dim 128"

    def zero(self, problem: Problem) -> bool:
        shape = problem.head_dim == 128 and problem.q_len == problem.kv_len >= 128
        return problem.dtype != "fp32" and shape and problem.mask.kind == "causal"

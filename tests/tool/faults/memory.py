"""Faults in reading and writing memory: rows, strides, offsets, padding, races."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import pad

from attn_impls.problem import Problem
from tests.tool.faults.kernel import EVERYTHING, Grads, Kernel, Tensor


class UnwrittenRow(Kernel):
    """The last row of the output is not written when it stands alone in its tile."""

    name = "unwritten output row"

    def store(self, result: Tensor, like: Tensor) -> Tensor:
        out = torch.empty_like(like)
        rows = result.shape[2] - (result.shape[2] % self.tile == 1)
        out[:, :, :rows] = result[:, :, :rows]
        return out


class StaleRow(Kernel):
    """The last row of the output is what the call before left there, from a workspace that is kept."""

    name = "stale output row"

    def __init__(self) -> None:
        self.workspace: dict[object, Tensor] = {}

    def store(self, result: Tensor, like: Tensor) -> Tensor:
        out = super().store(result, like)
        key = (tuple(like.shape), like.dtype)
        last = out[:, :, -1].clone()
        if key in self.workspace:
            out[:, :, -1] = self.workspace[key]
        self.workspace[key] = last
        return out


class RowOfTheTileBefore(Kernel):
    """The first row of the second tile of queries is written with the row before it."""

    name = "row of the tile before"

    def store(self, result: Tensor, like: Tensor) -> Tensor:
        result = result.clone()
        result[:, :, self.tile : self.tile + 1] = result[:, :, self.tile - 1 : self.tile].expand_as(
            result[:, :, self.tile : self.tile + 1]
        )
        return super().store(result, like)


class OneElement(Kernel):
    """One element of the output in a million, the 5000th, has lost an eighth of its value."""

    name = "one element in a million"

    def store(self, result: Tensor, like: Tensor) -> Tensor:
        flat = result.flatten()
        flat[4999::1_000_000] *= 0.875
        return super().store(flat.view_as(result), like)


class OffsetOverflow(Kernel):
    """Element offsets into keys and values wrap at 2^15, as they would at 2^31 in a large tensor."""

    name = "offset overflow"

    def read_kv(self, kv: Tensor, problem: Problem) -> Tensor:
        offset = torch.arange(kv.numel()) % 2**15
        return super().read_kv(kv.flatten()[offset].view_as(kv), problem)


class ReadsPastTheEnd(Kernel):
    """The last tile of values is read whole, past the end of the tensor; its weights there are 0, which hides it
    unless what lies behind is NaN.
    """

    name = "reads past the end"

    def divide(self, acc: Tensor, total: Tensor, v: Tensor) -> Tensor:
        return super().divide(acc, total, v) + 0.0 * self.behind

    def read_kv(self, kv: Tensor, problem: Problem) -> Tensor:
        # The row after the last one, where the storage has one; a real kernel would not ask.
        missing = -problem.kv_len % self.tile
        end = kv.storage_offset() + sum((n - 1) * step for n, step in zip(kv.shape, kv.stride(), strict=True))
        there = kv.untyped_storage().nbytes() // kv.element_size()
        count = min(missing * kv.shape[-1], there - end - 1) if kv.numel() else 0
        behind = torch.as_strided(kv.detach(), (max(count, 0),), (1,), end + 1)
        self.behind = behind.float().sum()
        return super().read_kv(kv, problem)


class IgnoresStrides(Kernel):
    """Keys are read as if they were contiguous."""

    name = "strides ignored"

    def read_kv(self, kv: Tensor, problem: Problem) -> Tensor:
        there = kv.untyped_storage().nbytes() // kv.element_size()
        if kv.is_contiguous() or kv.storage_offset() + kv.numel() > there:
            return super().read_kv(kv, problem)
        contiguous = torch.empty(kv.shape, device="meta").stride()
        return super().read_kv(torch.as_strided(kv.detach(), kv.shape, contiguous), problem)


class IgnoresStorageOffset(Kernel):
    """A view is read from the begin of its storage."""

    name = "storage offset ignored"

    def read_kv(self, kv: Tensor, problem: Problem) -> Tensor:
        return super().read_kv(torch.as_strided(kv.detach(), kv.shape, kv.stride(), 0), problem)


class DirtyPadding(Kernel):
    """The head dimension is padded to a multiple of 16, and the padding holds what was left there."""

    name = "head_dim padding not cleared"

    def scores(self, q: Tensor, k: Tensor, columns: slice, problem: Problem) -> tuple[Tensor, Tensor | None]:
        missing = -q.shape[-1] % 16
        return super().scores(pad(q, (0, missing), value=0.5), pad(k, (0, missing), value=0.5), columns, problem)


class ChangesItsInput(Kernel):
    """Queries are scaled where they lie."""

    name = "input changed in place"

    def attention(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, *, return_lse: bool = False) -> Any:
        kept = q.detach().clone()
        result = super().attention(q, k, v, problem, return_lse=return_lse)
        q.detach().copy_(kept * problem.softmax_scale)
        return result


class ClearsBehindItsRows(Kernel):
    """What lies behind each row of keys and values, up to a multiple of 8 elements, is set to 0 where it lies."""

    name = "writes past the end of its rows"

    def read_kv(self, kv: Tensor, problem: Problem) -> Tensor:
        *rows, width = kv.shape
        missing = -width % 8
        if min(kv.stride()[:-1]) >= width + missing:
            torch.as_strided(kv.detach(), (*rows, missing), kv.stride(), kv.storage_offset() + width).zero_()
        return super().read_kv(kv, problem)


class NotDeterministic(Kernel):
    """Claims to be deterministic; every third call differs by one ulp here and there, as atomics do."""

    name = "not deterministic"
    capabilities = replace(EVERYTHING, deterministic=True)

    def __init__(self) -> None:
        self.calls = 0

    def store(self, result: Tensor, like: Tensor) -> Tensor:
        self.calls += 1
        out = super().store(result, like)
        if self.calls % 3 == 0:
            flat = out.view(-1) if out.is_contiguous() else out
            flat[..., ::7] *= 1 + torch.finfo(out.dtype).eps
        return out


class RaceInTheLastTile(Kernel):
    """Claims nothing about determinism; in one call of four a row is read before its last tile was added."""

    name = "race"

    def __init__(self) -> None:
        self.calls = 0

    def tiles(self, problem: Problem) -> list[slice]:
        self.calls += 1
        tiles = super().tiles(problem)
        return tiles[:-1] if self.calls % 4 == 0 and len(tiles) > 1 else tiles


class KeptOutput(Kernel):
    """The output is a buffer that is kept for its shape, so that the next call overwrites it."""

    name = "output overwritten by the next call"

    def __init__(self) -> None:
        self.buffers: dict[object, Tensor] = {}

    def store(self, result: Tensor, like: Tensor) -> Tensor:
        buffer = self.buffers.setdefault((tuple(like.shape), like.dtype), torch.empty_like(like))
        return buffer.detach().copy_(result)


class NotDeterministicKept(KeptOutput):
    """Claims to be deterministic and is not, which a kept output buffer hides: both results are the last one."""

    name = "not deterministic, in a kept buffer"
    capabilities = replace(EVERYTHING, deterministic=True)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def store(self, result: Tensor, like: Tensor) -> Tensor:
        self.calls += 1
        return super().store(result * (1 + 2**-23) if self.calls % 3 == 0 else result, like)


class LatestForward(Kernel):
    """The backward pass reads the output of the latest forward pass, which need not be its own, from a workspace."""

    name = "backward of the latest forward"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        out, lse = super().forward(q, k, v, problem)
        self.latest = out
        return out, lse

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, problem: Problem) -> Grads:
        return super().backward(dout, q, k, v, self.latest, problem)


class StridesOfKeys(Kernel):
    """Values are read with the strides of the keys."""

    name = "values read with the keys' strides"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        there = v.untyped_storage().nbytes() // v.element_size() - v.storage_offset()
        if sum((n - 1) * step for n, step in zip(v.shape, k.stride(), strict=True)) < there and v.numel():
            v = torch.as_strided(v, v.shape, k.stride(), v.storage_offset())
        return super().forward(q, k, v, problem)

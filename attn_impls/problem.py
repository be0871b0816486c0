"""The words of the field: :class:`Problem`, :class:`Mask`, :class:`Direction`; FLOPs and bytes by formula.

Nothing here imports torch, so that collecting tests, reading results and checking options stay cheap.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# Above any problem there is, and small enough that no formula overflows a float.
_LARGEST = 2**40
MASK_KINDS = ("full", "causal", "causal_top_left", "window")
LAYOUTS = ("bshd", "bhsd")


class Direction(StrEnum):
    """What is run: the forward pass, the backward pass alone, or both."""

    FWD = "fwd"
    BWD = "bwd"
    FWD_BWD = "fwd_bwd"


# Matrix products a direction does, in units of the forward pass: two products forward, five backward (S is
# computed again), as FlashAttention counts them (Dao 2023, arXiv:2307.08691, section 4.1).
_FLOPS_FACTOR = {Direction.FWD: 1.0, Direction.BWD: 2.5, Direction.FWD_BWD: 3.5}


def _prefix_pairs(q_len: int, kv_len: int, diagonal: int) -> int:
    """Count pairs (i, j), 0 <= i < q_len, 0 <= j < kv_len, with j - i <= diagonal, in closed form."""
    # Row i sees clamp(i + diagonal + 1, 0, kv_len) keys: nothing, then one more a row, then all.
    first = max(0, min(q_len, -diagonal))  # first row that sees a key
    full = max(first, min(q_len, kv_len - diagonal - 1))  # first row that sees every key
    ramp = (full - first) * (first + full + 2 * diagonal + 1) // 2
    return ramp + (q_len - full) * kv_len


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_whole(value)


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys a query sees.

    ``kind`` is ``"full"``; ``"causal"``, aligned bottom-right, so that the last query sees the last key whatever
    the lengths (FlashAttention >= 2.1); ``"causal_top_left"``, where query ``i`` sees keys ``0..i`` (PyTorch's
    ``is_causal``); or ``"window"``, where query ``i`` sees keys ``i + kv_len - q_len - left`` to
    ``i + kv_len - q_len + right``. ``left`` and ``right`` belong to ``"window"``; ``None`` there is unbounded.

    Raises ``ValueError`` for an unknown kind or for bounds that do not fit the kind.
    """

    kind: str = "full"
    left: int | None = None
    right: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in MASK_KINDS:
            raise ValueError(f"mask kind {self.kind!r} is not one of {', '.join(MASK_KINDS)}")
        for name, bound in (("left", self.left), ("right", self.right)):
            if bound is not None and self.kind != "window":
                raise ValueError(f"mask {self.kind!r} takes no {name}={bound}; only 'window' does")
            if bound is not None and (not _is_whole(bound) or bound < 0):
                raise ValueError(f"window {name}={bound!r} is not a whole number from 0")
        if self.kind == "window" and self.left is None and self.right is None:
            raise ValueError("a window needs left or right; without either it is 'full'")

    @property
    def id(self) -> str:
        """The part of :attr:`Problem.id` that names the mask, e.g. ``causal`` or ``window1023_0``."""
        if self.kind != "window":
            return self.kind
        return f"window{'inf' if self.left is None else self.left}_{'inf' if self.right is None else self.right}"

    def diagonals(self, q_len: int, kv_len: int) -> tuple[int | None, int | None]:
        """Return ``(low, high)``: key ``j`` is visible to query ``i`` when ``low <= j - i <= high``.

        ``None`` is unbounded. One pair describes every mask, so that all that need a mask agree on it.
        """
        shift = kv_len - q_len
        if self.kind == "full":
            return None, None
        if self.kind == "causal":
            return None, shift
        if self.kind == "causal_top_left":
            return None, 0
        low = None if self.left is None else shift - self.left
        high = None if self.right is None else shift + self.right
        return low, high

    def visible(self, q_len: int, kv_len: int) -> int:
        """Count the visible (query, key) pairs exactly, in closed form."""
        low, high = self.diagonals(q_len, kv_len)
        upto_high = q_len * kv_len if high is None else _prefix_pairs(q_len, kv_len, high)
        below_low = 0 if low is None else _prefix_pairs(q_len, kv_len, low - 1)
        return upto_high - below_low

    def has_empty_rows(self, q_len: int, kv_len: int) -> bool:
        """Tell whether some query sees no key at all: its output is 0 and its LSE is -inf."""
        low, high = self.diagonals(q_len, kv_len)
        return (high is not None and high < 0) or (low is not None and q_len - 1 + low > kv_len - 1)


FULL = Mask("full")
CAUSAL = Mask("causal")


@dataclass(frozen=True, slots=True)
class Problem:
    """One attention problem: ``out = softmax(mask(softcap(scale * q @ k.T))) @ v``.

    Implementations see ``q`` as ``[batch, heads, q_len, head_dim]``, ``k`` and ``v`` as
    ``[batch, kv_heads, kv_len, head_dim]``; ``layout`` is the order in memory, so for ``"bshd"`` they are
    transposed views. Query head ``h`` reads key head ``h // (heads // kv_heads)``. ``scale=None`` means
    ``1 / sqrt(head_dim)``; ``softcap=c`` replaces a logit ``s`` by ``c * tanh(s / c)``.

    Raises ``ValueError`` with the offending value when the numbers do not make a problem.
    """

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    dtype: str
    mask: Mask = FULL
    softcap: float | None = None
    scale: float | None = None
    layout: str = "bshd"

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim"):
            value = getattr(self, name)
            if not _is_whole(value):
                raise ValueError(f"{name}={value!r} is not a whole number")
            if value < (0 if name == "batch" else 1):
                raise ValueError(f"{name}={value} is too small")
            if value > _LARGEST:
                raise ValueError(f"{name} is larger than {_LARGEST}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is not one of {', '.join(LAYOUTS)}")
        for name in ("softcap", "scale"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value!r} is not a positive number")

    @property
    def id(self) -> str:
        """A stable, readable name: pytest's id and the key of every comparison. Its format never changes silently."""
        parts = [
            f"b{self.batch}-h{self.heads}-kv{self.kv_heads}-q{self.q_len}-k{self.kv_len}-d{self.head_dim}",
            self.dtype,
            self.mask.id,
        ]
        if self.softcap is not None:
            parts.append(f"softcap{self.softcap:g}")
        if self.scale is not None:
            parts.append(f"scale{self.scale:g}")
        if self.layout != "bshd":
            parts.append(self.layout)
        return "-".join(parts)

    @property
    def softmax_scale(self) -> float:
        """The factor on the logits: ``scale``, or ``1 / sqrt(head_dim)``."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def embedding(self) -> int:
        """``heads * head_dim``, the model width of the course script's ``emb_dim``."""
        return self.heads * self.head_dim

    def flops(self, direction: Direction | str = Direction.FWD) -> float:
        """Floating-point operations: 4 * head_dim * visible pairs * batch * heads forward, 2.5x backward, 3.5x both.

        Masked elements do not count (Dao 2023, arXiv:2307.08691, section 4.1), nor does the softmax.
        """
        return self._flops(direction, self.mask.visible(self.q_len, self.kv_len))

    def dense_flops(self, direction: Direction | str = Direction.FWD) -> float:
        """:meth:`flops` as if nothing were masked: what a kernel does that skips nothing."""
        return self._flops(direction, self.q_len * self.kv_len)

    def _flops(self, direction: Direction | str, pairs: int) -> float:
        # Whole numbers up to the last product, so that a count is rounded once at most.
        return _FLOPS_FACTOR[Direction(direction)] * (4 * self.head_dim * pairs * self.batch * self.heads)

    def min_bytes(self, direction: Direction | str = Direction.FWD) -> int:
        """Bytes that any implementation must move: each input read once, each output written once.

        Forward reads q, k, v and writes out. Backward reads q, k, v, out, dout and writes dq, dk, dv. Both together
        read q, k, v, dout and write out, dq, dk, dv.
        """
        size = DTYPE_BYTES[self.dtype] * self.batch * self.head_dim
        q_size = size * self.heads * self.q_len
        kv_size = size * self.kv_heads * self.kv_len
        forward = 2 * q_size + 2 * kv_size
        if Direction(direction) is Direction.FWD:
            return forward
        return forward + 2 * q_size + 2 * kv_size

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as plain JSON values; :meth:`from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """Build a problem from :meth:`to_dict`'s form.

        The mask may be its kind alone. Raises ``ValueError`` for unknown or missing keys and values that do not fit.
        """
        _refuse_unknown("problem", data, cls)
        values = dict(data)
        mask = values.get("mask", FULL)
        if isinstance(mask, str):
            values["mask"] = Mask(mask)
        elif isinstance(mask, Mapping):
            _refuse_unknown("mask", mask, Mask)
            values["mask"] = Mask(**mask)
        elif not isinstance(mask, Mask):
            raise ValueError(f"mask {mask!r} is neither a kind nor a table with kind, left and right")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a problem: {error}") from None


def _refuse_unknown(what: str, data: Mapping[str, Any], cls: type) -> None:
    allowed = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(str(key) for key in set(data) - allowed)
    if unknown:
        raise ValueError(f"unknown {what} keys: {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}")

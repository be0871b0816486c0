"""What the Triton kernels share: rows in and out of memory, and the mask.

Importing this, or the kernels, imports Triton. With ``TRITON_INTERPRET=1`` in the environment before that, they run on
the CPU.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# A kernel is compiled by Triton from its text: its parameters are pointers and numbers, and take no annotation but
# constexpr.

import triton
import triton.language as tl

# Triton would compile a kernel for each pattern of which numbers are 1 and which are multiples of 16. What it needs to
# know for 16-byte loads is one thing, ALIGNED: that head_dim and all strides are multiples of 16.
_TENSORS = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")
VARIABLE = ["heads", "kv_heads", "group", "q_len", "kv_len", "head_dim", "low", "high"] + [
    f"{tensor}_{stride}" for tensor in _TENSORS for stride in ("batch", "head", "row")
]


@triton.jit
def told(x, ALIGNED: tl.constexpr):
    """Return ``x``, in a form that tells the compiler of a multiple of 16 where it is one."""
    if ALIGNED:
        x = x // 16 * 16
    return x


@triton.jit
def load_rows(base, first, end, stride, head_dim, ROWS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Load rows ``[first, first + ROWS)`` as ``[ROWS, WIDTH]``; 0 at and after row ``end`` and column ``head_dim``."""
    rows = first + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < end) & (columns[None, :] < told(head_dim, ALIGNED))
    at = rows.to(tl.int64)[:, None] * told(stride, ALIGNED) + columns[None, :]
    return tl.load(base + at, mask=inside, other=0.0)


@triton.jit
def store_rows(
    base, tile, first, end, stride, head_dim, ROWS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr
):
    """Store ``tile [ROWS, WIDTH]`` from row ``first`` on, but for what lies at or after ``end`` or ``head_dim``."""
    rows = first + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < end) & (columns[None, :] < told(head_dim, ALIGNED))
    to = base + rows.to(tl.int64)[:, None] * told(stride, ALIGNED) + columns[None, :]
    tl.store(to, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def visible(queries, keys, q_len, kv_len, low, high):
    """Tell which pairs of ``queries`` and ``keys``, shaped to broadcast, are visible."""
    diagonal = keys - queries
    return (diagonal >= low) & (diagonal <= high) & (keys < kv_len) & (queries < q_len)


@triton.jit
def key_ranges(q0, q1, kv_len, low, high, KEYS: tl.constexpr):
    """Cut the keys that queries ``[q0, q1)`` see, in whole blocks: masked from a to b, plain to c, masked to d."""
    a = tl.maximum(q0 + low, 0) // KEYS * KEYS
    d = tl.maximum(tl.minimum(q1 + high, kv_len), a)
    b = tl.minimum((tl.maximum(q1 - 1 + low, 0) + KEYS - 1) // KEYS * KEYS, d)
    b = tl.maximum(b, a)
    c = tl.maximum(tl.minimum(tl.maximum(q0 + high + 1, 0), kv_len) // KEYS * KEYS, b)
    return a, b, c, d

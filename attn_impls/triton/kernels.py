"""FlashAttention-2 as Triton kernels: forward, and a backward of three kernels without atomics.

The same algorithm as the CUDA rungs of :mod:`attn_impls.tiled`, written in blocks of rows where CUDA is written in
threads: the compiler deals elements to threads, stages tiles in shared memory and picks tensor-core instructions.
Names are theirs too: the mask is a band of diagonals (key ``j`` is visible to query ``i`` when ``low <= j - i <=
high``), scores are in units of log2, because exp2 is what the hardware has.

Importing this imports Triton. With ``TRITON_INTERPRET=1`` in the environment before that, the kernels run on the CPU.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# A kernel is compiled by Triton from its text: its parameters are pointers and numbers, and take no annotation but
# constexpr.

import triton
import triton.language as tl

# Triton would compile a kernel for each pattern of which numbers are 1 and which are multiples of 16. What it needs to
# know for 16-byte loads is one thing, ALIGNED: that head_dim and all strides are multiples of 16.
_TENSORS = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")
_VARIABLE = ["heads", "kv_heads", "group", "q_len", "kv_len", "head_dim", "low", "high"] + [
    f"{tensor}_{stride}" for tensor in _TENSORS for stride in ("batch", "head", "row")
]


@triton.jit
def _told(x, ALIGNED: tl.constexpr):
    """Return ``x``, in a form that tells the compiler of a multiple of 16 where it is one."""
    if ALIGNED:
        x = x // 16 * 16
    return x


@triton.jit
def _load_rows(base, first, end, stride, head_dim, ROWS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Load rows ``[first, first + ROWS)`` as ``[ROWS, WIDTH]``; 0 at and after row ``end`` and column ``head_dim``."""
    rows = first + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < end) & (columns[None, :] < _told(head_dim, ALIGNED))
    at = rows.to(tl.int64)[:, None] * _told(stride, ALIGNED) + columns[None, :]
    return tl.load(base + at, mask=inside, other=0.0)


@triton.jit
def _store_rows(
    base, tile, first, end, stride, head_dim, ROWS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr
):
    rows = first + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < end) & (columns[None, :] < _told(head_dim, ALIGNED))
    to = base + rows.to(tl.int64)[:, None] * _told(stride, ALIGNED) + columns[None, :]
    tl.store(to, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _visible(queries, keys, q_len, kv_len, low, high):
    """Tell which pairs of ``queries`` and ``keys``, shaped to broadcast, are visible."""
    diagonal = keys - queries
    return (diagonal >= low) & (diagonal <= high) & (keys < kv_len) & (queries < q_len)


@triton.jit
def _key_ranges(q0, q1, kv_len, low, high, KEYS: tl.constexpr):
    """Cut the keys that queries ``[q0, q1)`` see, in whole blocks: masked from a to b, plain to c, masked to d."""
    a = tl.maximum(q0 + low, 0) // KEYS * KEYS
    d = tl.maximum(tl.minimum(q1 + high, kv_len), a)
    b = tl.minimum((tl.maximum(q1 - 1 + low, 0) + KEYS - 1) // KEYS * KEYS, d)
    b = tl.maximum(b, a)
    c = tl.maximum(tl.minimum(tl.maximum(q0 + high + 1, 0), kv_len) // KEYS * KEYS, b)
    return a, b, c, d


@triton.jit
def _take_in_keys(
    out,
    maximum,
    total,
    q_tile,
    k,
    v,
    q0,
    begin,
    end,
    q_len,
    kv_len,
    low,
    high,
    k_row,
    v_row,
    head_dim,
    scale_log2,
    MASKED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One online-softmax step for each block of keys in ``[begin, end)``."""
    for k0 in range(begin, end, KEYS):
        k_tile = _load_rows(k, k0, kv_len, k_row, head_dim, KEYS, WIDTH, ALIGNED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
        if MASKED:
            queries = q0 + tl.arange(0, QUERIES)[:, None]
            keys = k0 + tl.arange(0, KEYS)[None, :]
            scores = tl.where(_visible(queries, keys, q_len, kv_len, low, high), scores, float("-inf"))
        new = tl.maximum(maximum, tl.max(scores, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # exp2(-inf - 0) is 0, exp2(-inf - -inf) would be NaN
        weights = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(maximum - shift)
        total = total * rescale + tl.sum(weights, 1)
        v_tile = _load_rows(v, k0, kv_len, v_row, head_dim, KEYS, WIDTH, ALIGNED)
        out = tl.dot(weights.to(v_tile.dtype), v_tile, out * rescale[:, None], input_precision="ieee")
        maximum = new
    return out, maximum, total


@triton.jit(do_not_specialize=_VARIABLE)
def attn_triton_forward(
    q,
    k,
    v,
    out,
    lse,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    out_batch,
    out_head,
    out_row,
    heads,
    group,
    q_len,
    kv_len,
    head_dim,
    scale_log2,
    low,
    high,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``out`` and ``lse`` of one block of queries of one head."""
    blocks = tl.cdiv(q_len, QUERIES)
    index = tl.program_id(0)
    q0 = (blocks - 1 - index % blocks) * QUERIES  # under a causal mask the last block has the most to do
    head = (index // blocks % heads).to(tl.int64)
    batch = (index // blocks // heads).to(tl.int64)
    k += _told(batch * k_batch + head // group * k_head, ALIGNED)
    v += _told(batch * v_batch + head // group * v_head, ALIGNED)

    q_tile = _load_rows(
        q + _told(batch * q_batch + head * q_head, ALIGNED), q0, q_len, q_row, head_dim, QUERIES, WIDTH, ALIGNED
    )
    maximum = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    o = tl.zeros([QUERIES, WIDTH], tl.float32)
    a, b, c, d = _key_ranges(q0, tl.minimum(q0 + QUERIES, q_len), kv_len, low, high, KEYS)
    for phase in tl.static_range(3):
        o, maximum, total = _take_in_keys(
            o,
            maximum,
            total,
            q_tile,
            k,
            v,
            q0,
            a if phase == 0 else b if phase == 1 else c,
            b if phase == 0 else c if phase == 1 else d,
            q_len,
            kv_len,
            low,
            high,
            k_row,
            v_row,
            head_dim,
            scale_log2,
            phase != 1,
            QUERIES,
            KEYS,
            WIDTH,
            ALIGNED,
        )

    # A row that saw no key has total 0: its output is 0 by convention, and its log-sum-exp -inf.
    total = tl.where(total == 0.0, 1.0, total)
    o = o / total[:, None]
    _store_rows(
        out + _told(batch * out_batch + head * out_head, ALIGNED),
        o,
        q0,
        q_len,
        out_row,
        head_dim,
        QUERIES,
        WIDTH,
        ALIGNED,
    )
    queries = q0 + tl.arange(0, QUERIES)
    natural = (maximum + tl.log2(total)) * 0.6931471805599453
    tl.store(lse + (batch * heads + head) * q_len + queries, natural, mask=queries < q_len)


@triton.jit(do_not_specialize=_VARIABLE)
def attn_triton_backward_delta(
    dout,
    out,
    dlse,
    delta,
    dout_batch,
    dout_head,
    dout_row,
    out_batch,
    out_head,
    out_row,
    heads,
    q_len,
    head_dim,
    HAS_DLSE: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``delta = rowsum(dout * out) - dlse``, fp32 ``[batch, heads, q_len]``: what softmax's derivative takes off."""
    blocks = tl.cdiv(q_len, QUERIES)
    index = tl.program_id(0)
    q0 = index % blocks * QUERIES
    head = (index // blocks % heads).to(tl.int64)
    batch = (index // blocks // heads).to(tl.int64)
    do = _load_rows(
        dout + _told(batch * dout_batch + head * dout_head, ALIGNED),
        q0,
        q_len,
        dout_row,
        head_dim,
        QUERIES,
        WIDTH,
        ALIGNED,
    )
    o = _load_rows(
        out + _told(batch * out_batch + head * out_head, ALIGNED), q0, q_len, out_row, head_dim, QUERIES, WIDTH, ALIGNED
    )
    total = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    queries = q0 + tl.arange(0, QUERIES)
    at = (batch * heads + head) * q_len + queries
    if HAS_DLSE:
        total -= tl.load(dlse + at, mask=queries < q_len, other=0.0)
    tl.store(delta + at, total, mask=queries < q_len)


@triton.jit
def _load_saved(saved, first, q_len, QUERIES: tl.constexpr):
    """Load fp32 numbers of queries; 0 in place of the -inf of a row that saw no key, all of whose pairs are masked."""
    queries = first + tl.arange(0, QUERIES)
    x = tl.load(saved + queries, mask=queries < q_len, other=0.0)
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit(do_not_specialize=_VARIABLE)
def attn_triton_backward_kv(
    q,
    k,
    v,
    dout,
    lse,
    delta,
    dk,
    dv,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    dout_batch,
    dout_head,
    dout_row,
    dk_batch,
    dk_head,
    dk_row,
    dv_batch,
    dv_head,
    dv_row,
    kv_heads,
    group,
    q_len,
    kv_len,
    head_dim,
    scale,
    low,
    high,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``dk`` and ``dv`` of one block of keys: the sum over all queries, of all heads that share the key head."""
    blocks = tl.cdiv(kv_len, KEYS)
    index = tl.program_id(0)
    k0 = index % blocks * KEYS  # under a causal mask the first block has the most to do
    kv_head = (index // blocks % kv_heads).to(tl.int64)
    batch = (index // blocks // kv_heads).to(tl.int64)
    k_tile = _load_rows(
        k + _told(batch * k_batch + kv_head * k_head, ALIGNED), k0, kv_len, k_row, head_dim, KEYS, WIDTH, ALIGNED
    )
    v_tile = _load_rows(
        v + _told(batch * v_batch + kv_head * v_head, ALIGNED), k0, kv_len, v_row, head_dim, KEYS, WIDTH, ALIGNED
    )
    dk_tile = tl.zeros([KEYS, WIDTH], tl.float32)
    dv_tile = tl.zeros([KEYS, WIDTH], tl.float32)
    k1 = tl.minimum(k0 + KEYS, kv_len)
    begin = tl.maximum(k0 - high, 0) // QUERIES * QUERIES
    end = tl.minimum(k1 - low, q_len)
    keys = k0 + tl.arange(0, KEYS)[:, None]

    for member in range(group):
        head = kv_head * group + member
        q_of_head = q + _told(batch * q_batch + head * q_head, ALIGNED)
        dout_of_head = dout + _told(batch * dout_batch + head * dout_head, ALIGNED)
        saved = (batch * kv_heads * group + head) * q_len
        for q0 in range(begin, end, QUERIES):
            q_tile = _load_rows(q_of_head, q0, q_len, q_row, head_dim, QUERIES, WIDTH, ALIGNED)
            scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * (scale * 1.4426950408889634)
            logsumexp = _load_saved(lse + saved, q0, q_len, QUERIES) * 1.4426950408889634
            queries = q0 + tl.arange(0, QUERIES)[None, :]
            seen = _visible(queries, keys, q_len, kv_len, low, high)
            weights = tl.where(seen, tl.exp2(scores - logsumexp[None, :]), 0.0)
            do = _load_rows(dout_of_head, q0, q_len, dout_row, head_dim, QUERIES, WIDTH, ALIGNED)
            dv_tile = tl.dot(weights.to(do.dtype), do, dv_tile, input_precision="ieee")
            dweights = tl.dot(v_tile, tl.trans(do), input_precision="ieee")
            dscores = weights * (dweights - _load_saved(delta + saved, q0, q_len, QUERIES)[None, :])
            dk_tile = tl.dot(dscores.to(q_tile.dtype), q_tile, dk_tile, input_precision="ieee")

    _store_rows(
        dk + _told(batch * dk_batch + kv_head * dk_head, ALIGNED),
        dk_tile * scale,
        k0,
        kv_len,
        dk_row,
        head_dim,
        KEYS,
        WIDTH,
        ALIGNED,
    )
    _store_rows(
        dv + _told(batch * dv_batch + kv_head * dv_head, ALIGNED),
        dv_tile,
        k0,
        kv_len,
        dv_row,
        head_dim,
        KEYS,
        WIDTH,
        ALIGNED,
    )


@triton.jit(do_not_specialize=_VARIABLE)
def attn_triton_backward_q(
    q,
    k,
    v,
    dout,
    lse,
    delta,
    dq,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    dout_batch,
    dout_head,
    dout_row,
    dq_batch,
    dq_head,
    dq_row,
    heads,
    group,
    q_len,
    kv_len,
    head_dim,
    scale,
    low,
    high,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``dq`` of one block of queries. The scores are computed once more: two matrix products against atomics."""
    blocks = tl.cdiv(q_len, QUERIES)
    index = tl.program_id(0)
    q0 = (blocks - 1 - index % blocks) * QUERIES
    head = (index // blocks % heads).to(tl.int64)
    batch = (index // blocks // heads).to(tl.int64)
    k += _told(batch * k_batch + head // group * k_head, ALIGNED)
    v += _told(batch * v_batch + head // group * v_head, ALIGNED)
    q_tile = _load_rows(
        q + _told(batch * q_batch + head * q_head, ALIGNED), q0, q_len, q_row, head_dim, QUERIES, WIDTH, ALIGNED
    )
    do = _load_rows(
        dout + _told(batch * dout_batch + head * dout_head, ALIGNED),
        q0,
        q_len,
        dout_row,
        head_dim,
        QUERIES,
        WIDTH,
        ALIGNED,
    )
    saved = (batch * heads + head) * q_len
    logsumexp = _load_saved(lse + saved, q0, q_len, QUERIES) * 1.4426950408889634
    delta_of_rows = _load_saved(delta + saved, q0, q_len, QUERIES)
    dq_tile = tl.zeros([QUERIES, WIDTH], tl.float32)
    q1 = tl.minimum(q0 + QUERIES, q_len)
    queries = q0 + tl.arange(0, QUERIES)[:, None]

    for k0 in range(tl.maximum(q0 + low, 0) // KEYS * KEYS, tl.minimum(q1 + high, kv_len), KEYS):
        k_tile = _load_rows(k, k0, kv_len, k_row, head_dim, KEYS, WIDTH, ALIGNED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * (scale * 1.4426950408889634)
        keys = k0 + tl.arange(0, KEYS)[None, :]
        seen = _visible(queries, keys, q_len, kv_len, low, high)
        weights = tl.where(seen, tl.exp2(scores - logsumexp[:, None]), 0.0)
        v_tile = _load_rows(v, k0, kv_len, v_row, head_dim, KEYS, WIDTH, ALIGNED)
        dweights = tl.dot(do, tl.trans(v_tile), input_precision="ieee")
        dscores = weights * (dweights - delta_of_rows[:, None])
        dq_tile = tl.dot(dscores.to(k_tile.dtype), k_tile, dq_tile, input_precision="ieee")

    _store_rows(
        dq + _told(batch * dq_batch + head * dq_head, ALIGNED),
        dq_tile * scale,
        q0,
        q_len,
        dq_row,
        head_dim,
        QUERIES,
        WIDTH,
        ALIGNED,
    )

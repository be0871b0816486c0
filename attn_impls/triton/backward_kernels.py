"""The backward in three Triton kernels, without atomics; words are those of the forward, :mod:`.forward_kernel`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from attn_impls.triton.blocks import VARIABLE, load_rows, store_rows, told, visible


@triton.jit(do_not_specialize=VARIABLE)
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
    do = load_rows(
        dout + told(batch * dout_batch + head * dout_head, ALIGNED),
        q0,
        q_len,
        dout_row,
        head_dim,
        QUERIES,
        WIDTH,
        ALIGNED,
    )
    o = load_rows(
        out + told(batch * out_batch + head * out_head, ALIGNED), q0, q_len, out_row, head_dim, QUERIES, WIDTH, ALIGNED
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


@triton.jit(do_not_specialize=VARIABLE)
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
    k_tile = load_rows(
        k + told(batch * k_batch + kv_head * k_head, ALIGNED), k0, kv_len, k_row, head_dim, KEYS, WIDTH, ALIGNED
    )
    v_tile = load_rows(
        v + told(batch * v_batch + kv_head * v_head, ALIGNED), k0, kv_len, v_row, head_dim, KEYS, WIDTH, ALIGNED
    )
    dk_tile = tl.zeros([KEYS, WIDTH], tl.float32)
    dv_tile = tl.zeros([KEYS, WIDTH], tl.float32)
    k1 = tl.minimum(k0 + KEYS, kv_len)
    begin = tl.maximum(k0 - high, 0) // QUERIES * QUERIES
    end = tl.minimum(k1 - low, q_len)
    keys = k0 + tl.arange(0, KEYS)[:, None]

    for member in range(group):
        head = kv_head * group + member
        q_of_head = q + told(batch * q_batch + head * q_head, ALIGNED)
        dout_of_head = dout + told(batch * dout_batch + head * dout_head, ALIGNED)
        saved = (batch * kv_heads * group + head) * q_len
        for q0 in range(begin, end, QUERIES):
            q_tile = load_rows(q_of_head, q0, q_len, q_row, head_dim, QUERIES, WIDTH, ALIGNED)
            scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * (scale * 1.4426950408889634)
            logsumexp = _load_saved(lse + saved, q0, q_len, QUERIES) * 1.4426950408889634
            queries = q0 + tl.arange(0, QUERIES)[None, :]
            seen = visible(queries, keys, q_len, kv_len, low, high)
            weights = tl.where(seen, tl.exp2(scores - logsumexp[None, :]), 0.0)
            do = load_rows(dout_of_head, q0, q_len, dout_row, head_dim, QUERIES, WIDTH, ALIGNED)
            dv_tile = tl.dot(weights.to(do.dtype), do, dv_tile, input_precision="ieee")
            dweights = tl.dot(v_tile, tl.trans(do), input_precision="ieee")
            dscores = weights * (dweights - _load_saved(delta + saved, q0, q_len, QUERIES)[None, :])
            dk_tile = tl.dot(dscores.to(q_tile.dtype), q_tile, dk_tile, input_precision="ieee")

    store_rows(
        dk + told(batch * dk_batch + kv_head * dk_head, ALIGNED),
        dk_tile * scale,
        k0,
        kv_len,
        dk_row,
        head_dim,
        KEYS,
        WIDTH,
        ALIGNED,
    )
    store_rows(
        dv + told(batch * dv_batch + kv_head * dv_head, ALIGNED),
        dv_tile,
        k0,
        kv_len,
        dv_row,
        head_dim,
        KEYS,
        WIDTH,
        ALIGNED,
    )


@triton.jit(do_not_specialize=VARIABLE)
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
    k += told(batch * k_batch + head // group * k_head, ALIGNED)
    v += told(batch * v_batch + head // group * v_head, ALIGNED)
    q_tile = load_rows(
        q + told(batch * q_batch + head * q_head, ALIGNED), q0, q_len, q_row, head_dim, QUERIES, WIDTH, ALIGNED
    )
    do = load_rows(
        dout + told(batch * dout_batch + head * dout_head, ALIGNED),
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
        k_tile = load_rows(k, k0, kv_len, k_row, head_dim, KEYS, WIDTH, ALIGNED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * (scale * 1.4426950408889634)
        keys = k0 + tl.arange(0, KEYS)[None, :]
        seen = visible(queries, keys, q_len, kv_len, low, high)
        weights = tl.where(seen, tl.exp2(scores - logsumexp[:, None]), 0.0)
        v_tile = load_rows(v, k0, kv_len, v_row, head_dim, KEYS, WIDTH, ALIGNED)
        dweights = tl.dot(do, tl.trans(v_tile), input_precision="ieee")
        dscores = weights * (dweights - delta_of_rows[:, None])
        dq_tile = tl.dot(dscores.to(k_tile.dtype), k_tile, dq_tile, input_precision="ieee")

    store_rows(
        dq + told(batch * dq_batch + head * dq_head, ALIGNED),
        dq_tile * scale,
        q0,
        q_len,
        dq_row,
        head_dim,
        QUERIES,
        WIDTH,
        ALIGNED,
    )

"""FlashAttention-2 as a Triton kernel: the forward.

The same algorithm as the CUDA rungs of :mod:`attn_impls.tiled`, written in blocks of rows where CUDA is written in
threads: the compiler deals elements to threads, stages tiles in shared memory and picks tensor-core instructions.
Names are theirs too: the mask is a band of diagonals (key ``j`` is visible to query ``i`` when ``low <= j - i <=
high``), scores are in units of log2, because exp2 is what the hardware has.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from attn_impls.triton.blocks import VARIABLE, key_ranges, load_rows, store_rows, told, visible


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
        k_tile = load_rows(k, k0, kv_len, k_row, head_dim, KEYS, WIDTH, ALIGNED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
        if MASKED:
            queries = q0 + tl.arange(0, QUERIES)[:, None]
            keys = k0 + tl.arange(0, KEYS)[None, :]
            scores = tl.where(visible(queries, keys, q_len, kv_len, low, high), scores, float("-inf"))
        new = tl.maximum(maximum, tl.max(scores, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # exp2(-inf - 0) is 0, exp2(-inf - -inf) would be NaN
        weights = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(maximum - shift)
        total = total * rescale + tl.sum(weights, 1)
        v_tile = load_rows(v, k0, kv_len, v_row, head_dim, KEYS, WIDTH, ALIGNED)
        out = tl.dot(weights.to(v_tile.dtype), v_tile, out * rescale[:, None], input_precision="ieee")
        maximum = new
    return out, maximum, total


@triton.jit(do_not_specialize=VARIABLE)
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
    k += told(batch * k_batch + head // group * k_head, ALIGNED)
    v += told(batch * v_batch + head // group * v_head, ALIGNED)

    q_tile = load_rows(
        q + told(batch * q_batch + head * q_head, ALIGNED), q0, q_len, q_row, head_dim, QUERIES, WIDTH, ALIGNED
    )
    maximum = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    o = tl.zeros([QUERIES, WIDTH], tl.float32)
    a, b, c, d = key_ranges(q0, tl.minimum(q0 + QUERIES, q_len), kv_len, low, high, KEYS)
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
    store_rows(
        out + told(batch * out_batch + head * out_head, ALIGNED),
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

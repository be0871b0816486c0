// Which queries a thread block owns.
#pragma once

#include "params.h"

namespace attn {

struct QueryBlock {
  int64_t batch, head, kv_head;
  int64_t q0, q1;  // its queries are [q0, q1)

  static int64_t count(const Shape& shape, int tile) {
    return shape.batch * shape.heads * ((shape.q_len + tile - 1) / tile);
  }

  // Consecutive blocks share a head, whose keys and values then stay in the L2 cache. The last tile of a head comes
  // first, because under a causal mask it has the most to do.
  __device__ static QueryBlock mine(const Shape& shape, int tile) {
    const int64_t tiles = (shape.q_len + tile - 1) / tile;
    const int64_t index = blockIdx.x;
    const int64_t head = index / tiles % shape.heads;
    const int64_t q0 = (tiles - 1 - index % tiles) * tile;
    return {index / tiles / shape.heads, head, head / shape.group(), q0, min(q0 + tile, shape.q_len)};
  }
};

}  // namespace attn

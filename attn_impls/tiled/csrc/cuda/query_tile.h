// Which query tile of which head a thread block owns.
#pragma once

#include "params.h"

namespace attn {

// Consecutive blocks share a head, whose keys and values then stay in the L2 cache. The last tile of a head comes
// first, because under a causal mask it has the most to do.
struct QueryTile {
  int batch, head, kv_head, q0, q1;

  __device__ static QueryTile of_block(const Shape& shape, int rows) {
    const int q_len = static_cast<int>(shape.q_len), heads = static_cast<int>(shape.heads);
    const int tiles = (q_len + rows - 1) / rows;
    const int index = static_cast<int>(blockIdx.x);
    const int q0 = (tiles - 1 - index % tiles) * rows;
    const int head = index / tiles % heads;
    return {index / tiles / heads, head, head / static_cast<int>(shape.group()), q0,
            q0 + rows < q_len ? q0 + rows : q_len};
  }
};

}  // namespace attn

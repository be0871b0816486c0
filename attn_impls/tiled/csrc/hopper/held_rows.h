// A fragments of a warp to shared memory and back, by stmatrix and ldmatrix (fragments.h).
#pragma once

#include "../cuda/tile_product.h"

namespace attn {

// The 16 rows of a warp, from `row` of the tile on, over all of its columns. In a loop the addresses are computed anew
// each time rather than held.
template <typename Layout, int depth_pieces>
__device__ inline void store_rows(const Held<1, depth_pieces>& held, uint32_t tile, int row) {
  const PieceRow place = down_then_right(thread_read_anew() % kWarp);
#pragma unroll
  for (int k = 0; k < depth_pieces; ++k) {
    store_matrices(tile + Layout::offset(row + place.row, 2 * k + place.chunk), held.at[0][k]);
  }
}

// The reverse.
template <typename Layout, int depth_pieces>
__device__ __forceinline__ Held<1, depth_pieces> load_rows(uint32_t tile, int row) {
  const PieceRow place = down_then_right(static_cast<int>(threadIdx.x) % kWarp);
  Held<1, depth_pieces> held;
#pragma unroll
  for (int k = 0; k < depth_pieces; ++k) {
    load_matrices(tile + Layout::offset(row + place.row, 2 * k + place.chunk), held.at[0][k]);
  }
  return held;
}

}  // namespace attn

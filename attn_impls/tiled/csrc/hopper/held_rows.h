// A fragments of a warp between registers and shared memory: stmatrix, and ldmatrix, whose reverse it is (fragments.h).
#pragma once

#include "../cuda/tile_product.h"

namespace attn {

// Four 8 x 8 matrices, lane by lane; lanes 8i ... 8i + 7 give the addresses of the rows of matrix i.
__device__ inline void store_four_matrices(uint32_t at, const uint32_t (&x)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x[0]), "r"(x[1]),
               "r"(x[2]), "r"(x[3])
               : "memory");
}

// The 16 rows of a warp, from `row` of the tile on, over all of its columns.
template <typename Layout, int depth_pieces>
__device__ inline void store_matrices(const Held<1, depth_pieces>& held, uint32_t tile, int row) {
  const PieceRow place = down_then_right(static_cast<int>(threadIdx.x) % kWarp);
#pragma unroll
  for (int k = 0; k < depth_pieces; ++k) {
    store_four_matrices(tile + Layout::offset(row + place.row, 2 * k + place.chunk), held.at[0][k]);
  }
}

// The reverse.
template <typename Layout, int depth_pieces>
__device__ __forceinline__ Held<1, depth_pieces> load_held(uint32_t tile, int row) {
  const PieceRow place = down_then_right(static_cast<int>(threadIdx.x) % kWarp);
  Held<1, depth_pieces> held;
#pragma unroll
  for (int k = 0; k < depth_pieces; ++k) {
    load_matrices(tile + Layout::offset(row + place.row, 2 * k + place.chunk), held.at[0][k]);
  }
  return held;
}

}  // namespace attn

// From accumulators straight to global memory.
//
// A lane holds two neighbours of every eight columns, four bytes. The four lanes of a quad trade them, so that each has
// all of one chunk in four, and store 16 bytes each, 64 bytes of a row together. No shared memory takes part, and no
// warp waits for another.
#pragma once

#include "../cuda/ptx.h"
#include "../cuda/tile_product.h"

namespace attn {

// Lane t of a quad has words[i] of chunk i; afterwards it has all four words of chunk t, in the order of the lanes. The
// transposition of a 4 x 4 matrix: off its diagonal blocks, then within them.
__device__ __forceinline__ void trade_words(uint32_t (&words)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const uint32_t got = __shfl_xor_sync(kAllLanes, upper ? words[i] : words[i | bit], bit);
      if (upper)
        words[i] = got;
      else
        words[i | bit] = got;
    }
  }
}

// Round the 16 rows of a warp's accumulator, each times its factor, and write, from row `row` on, those that
// lie in [0, end).
template <typename T, typename C>
__device__ __forceinline__ void write_rows(const C& c, const float (&factor)[1][2], const View<T>& to, int batch,
                                           int head, int row, int end, int head_dim) {
  static_assert(C::kColumnTiles % 4 == 0);
  const int lane = thread_read_anew() % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = row + accumulator_row(lane, 2 * half);
    T* const begin = to.row(batch, head, at);
#pragma unroll
    for (int n = 0; n < C::kColumnTiles; n += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&x)[4] = c.at[0][n + i];
        words[i] = pack<T>(x[2 * half] * factor[0][half], x[2 * half + 1] * factor[0][half]);
      }
      trade_words(words);
      const int column = (n + lane % 4) * kChunk;
      if (static_cast<unsigned>(at) < static_cast<unsigned>(end) && column < head_dim) {
        *reinterpret_cast<uint4*>(begin + column) = uint4{words[0], words[1], words[2], words[3]};
      }
    }
  }
}

}  // namespace attn

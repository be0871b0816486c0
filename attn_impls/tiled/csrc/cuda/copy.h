// Copies rows [begin, end), at most 32, of one head from global memory to a tile of 32 fp32 rows of `width` numbers in
// shared memory, `stride` apart, by a block of 32 x 32 threads. What lies behind row `end` or number `head_dim`
// becomes 0.
#pragma once

#include "element.h"
#include "params.h"
#include "warp.h"

namespace attn {

// A thread's part of a row: numbers first, first + 32, ... The loop has few turns, and stays rolled because registers
// decide how many warps fit on an SM.
template <typename T>
__device__ void copy_every_32nd(const T* from, int present, int first, float* to, int width) {
#pragma unroll 1
  for (int d = first; d < width; d += kWarp) to[d] = d < present ? to_float(from[d]) : 0.0f;
}

// Lane i copies row i, and a warp a column at a time: the obvious way for a kernel whose lane i then uses row i.
struct CopyRowByLane {
  template <typename T>
  __device__ static void rows(const View<const T>& from, int64_t batch, int64_t head, int64_t begin, int64_t end,
                              int head_dim, float* tile, int width, int stride) {
    const int row = threadIdx.x;
    const int present = begin + row < end ? head_dim : 0;
    copy_every_32nd(from.row(batch, head, begin + row), present, threadIdx.y, tile + row * stride, width);
  }
};

// Warp i copies row i, neighbouring lanes neighbouring numbers.
struct CopyRowByWarp {
  template <typename T>
  __device__ static void rows(const View<const T>& from, int64_t batch, int64_t head, int64_t begin, int64_t end,
                              int head_dim, float* tile, int width, int stride) {
    const int row = threadIdx.y;
    const int present = begin + row < end ? head_dim : 0;
    copy_every_32nd(from.row(batch, head, begin + row), present, threadIdx.x, tile + row * stride, width);
  }
};

}  // namespace attn

// Tiles of 32 rows in shared memory, for the kernel of warp_per_query.h.
#pragma once

#include "copy.h"
#include "shared_memory.h"
#include "warp_per_query.h"

namespace attn {

// Copy fills a tile from global memory (copy.h); Stride::of(width) is the distance between rows of the K and the V
// tile. The rows of the Q tile, of which a warp reads only its own, lie without a gap.
template <typename T, typename Copy, typename Stride>
class SharedTiles {
 public:
  static constexpr int kColumns = kMostHeadDim / kWarp;

  static int64_t bytes(int64_t width) {
    return kTile * (width + 2 * Stride::of(width)) * static_cast<int64_t>(sizeof(float));
  }

  __device__ SharedTiles(const ForwardParams<T>& p, const QueryBlock& block)
      : SharedTiles(p, block, static_cast<int>(p.shape.head_dim)) {}

  __device__ void load(int64_t k0, int64_t k1) {
    __syncthreads();  // every warp is done with the tiles before
    Copy::rows(p_.k, block_.batch, block_.kv_head, k0, k1, head_dim(), k_, width_, stride_);
    Copy::rows(p_.v, block_.batch, block_.kv_head, k0, k1, head_dim(), v_, width_, stride_);
    __syncthreads();
  }

  __device__ float dot(int row, int lane) const {
    float sum = 0.0f;
    for (int d = 0; d < width_; ++d) sum += q_[row * width_ + d] * k_[lane * stride_ + d];
    return sum;
  }

  __device__ void add_values(float weight, int keys, float (&out)[kColumns]) const {
    for (int j = 0; j < keys; ++j) {
      const float weight_j = __shfl_sync(kAllLanes, weight, j);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int d = static_cast<int>(threadIdx.x) + kWarp * c;
        if (d < width_) out[c] += weight_j * v_[j * stride_ + d];
      }
    }
  }

 protected:
  // `width` numbers are kept of each row, at least head_dim.
  __device__ SharedTiles(const ForwardParams<T>& p, const QueryBlock& block, int width)
      : p_(p), block_(block), width_(width), stride_(static_cast<int>(Stride::of(width))) {
    q_ = shared_memory();
    k_ = q_ + kTile * width_;
    v_ = k_ + kTile * stride_;
    Copy::rows(p_.q, block_.batch, block_.head, block_.q0, block_.q1, head_dim(), q_, width_, width_);
  }

  __device__ int head_dim() const { return static_cast<int>(p_.shape.head_dim); }

  const ForwardParams<T>& p_;
  const QueryBlock& block_;
  const int width_, stride_;
  float *q_, *k_, *v_;
};

}  // namespace attn

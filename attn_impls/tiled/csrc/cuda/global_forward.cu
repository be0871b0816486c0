// tiled-global: the foot of the ladder. Tiles without shared memory: every number is read from global memory where it
// is needed.
//
// What:  a block of 32 x 32 threads owns 32 queries of one head, a warp is one query, and a lane scores one key of a
//        tile of 32. Softmax is online, in registers.
// Why:   the score matrix, which naive attention writes and reads several times, does not exist (Dao et al. 2022,
//        arXiv:2205.14135). This is the least that a fused kernel needs.
// Limit: each of the 32 warps of a block reads the same keys and values again, and only the caches save it. The lanes
//        of a warp read one column of K, a row apart, so that one load touches 32 sectors of 32 bytes for 128 bytes
//        that it wants. Next: tiles in shared memory.
#include "forward_op.h"
#include "warp_per_query.h"

namespace attn {
namespace {

template <typename T>
class GlobalTiles {
 public:
  static constexpr int kColumns = kMostHeadDim / kWarp;

  __device__ GlobalTiles(const ForwardParams<T>& p, const QueryBlock& block) : p_(p), block_(block), k0_(0) {}

  __device__ void load(int64_t k0, int64_t) { k0_ = k0; }

  __device__ float dot(int row, int lane) const {
    const T* q = p_.q.row(block_.batch, block_.head, block_.q0 + row);
    const T* k = p_.k.row(block_.batch, block_.kv_head, k0_ + lane);
    float sum = 0.0f;
    for (int d = 0; d < static_cast<int>(p_.shape.head_dim); ++d) sum += to_float(q[d]) * to_float(k[d]);
    return sum;
  }

  __device__ void add_values(float weight, int keys, float (&out)[kColumns]) const {
    for (int j = 0; j < keys; ++j) {
      const float weight_j = __shfl_sync(kAllLanes, weight, j);
      const T* v = p_.v.row(block_.batch, block_.kv_head, k0_ + j);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int d = static_cast<int>(threadIdx.x) + kWarp * c;
        if (d < static_cast<int>(p_.shape.head_dim)) out[c] += weight_j * to_float(v[d]);
      }
    }
  }

 private:
  const ForwardParams<T>& p_;
  const QueryBlock& block_;
  int64_t k0_;
};

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm) global_forward_kernel(ForwardParams<T> p) {
  one_warp_a_query<GlobalTiles<T>>(p);
}

std::tuple<Tensor, Tensor> global_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                          int64_t high) {
  return forward(q, k, v, scale, low, high, [&]<typename T>(const ForwardParams<T>& p) {
    launch(q, QueryBlock::count(p.shape, kTile), dim3(kWarp, kTile), 0, global_forward_kernel<T>, p);
  });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(global_forward)

// tiled-unroll: loops whose bounds the compiler knows.
//
// What:  against tiled-coalesced, the kernel is compiled for rows of 32, 64, 96 and 128 numbers, and always goes
//        through 32 keys. What lies beyond head_dim or behind the last key is 0 in the tiles, and adds nothing.
// Why:   both inner loops are unrolled by eight with no remainder. The guards of head_dim are gone, a counter and a
//        comparison serve eight steps, and an address in shared memory is a constant beside a register. Now that the
//        compiler sees rows of Q begin at 16-byte boundaries, it reads four of their numbers at once.
// Limit: shared memory again. A multiply-add of the scores still loads a number of K and a quarter of Q's four, one
//        of the output still one and half a shuffle or less, and a shared-memory load costs more than the
//        multiply-add it feeds. Next: a thread that computes many scores from what it has loaded.
#include "forward_op.h"
#include "shared_tiles.h"
#include "stride.h"

namespace attn {
namespace {

constexpr int kUnroll = 8;  // of the inner loops; whole, they would hold so many loads that half the warps fit on an SM

template <typename T, int kWidth>
class UnrolledTiles : public SharedTiles<T, CopyRowByWarp, OddStride> {
  using Base = SharedTiles<T, CopyRowByWarp, OddStride>;
  static constexpr int kStride = static_cast<int>(OddStride::of(kWidth));

 public:
  static constexpr int kColumns = kWidth / kWarp;

  static int64_t bytes() { return Base::bytes(kWidth); }

  __device__ UnrolledTiles(const ForwardParams<T>& p, const QueryBlock& block) : Base(p, block, kWidth) {}

  __device__ float dot(int row, int lane) const {
    float sum = 0.0f;
#pragma unroll(kUnroll)
    for (int d = 0; d < kWidth; ++d) sum += this->q_[row * kWidth + d] * this->k_[lane * kStride + d];
    return sum;
  }

  __device__ void add_values(float weight, int, float (&out)[kColumns]) const {
#pragma unroll(kUnroll)
    for (int j = 0; j < kTile; ++j) {
      const float weight_j = __shfl_sync(kAllLanes, weight, j);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[c] += weight_j * this->v_[j * kStride + threadIdx.x + kWarp * c];
    }
  }
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm) unroll_forward_kernel(ForwardParams<T> p) {
  one_warp_a_query<UnrolledTiles<T, kWidth>>(p);
}

template <int kWidth, typename T>
void start(const Tensor& q, const ForwardParams<T>& p) {
  launch(q, QueryBlock::count(p.shape, kTile), dim3(kWarp, kTile), UnrolledTiles<T, kWidth>::bytes(),
         unroll_forward_kernel<T, kWidth>, p);
}

std::tuple<Tensor, Tensor> unroll_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                          int64_t high) {
  return forward(q, k, v, scale, low, high, [&](const auto& p) {
    switch ((p.shape.head_dim + kWarp - 1) / kWarp) {
      case 1:
        return start<32>(q, p);
      case 2:
        return start<64>(q, p);
      case 3:
        return start<96>(q, p);
      default:
        return start<128>(q, p);
    }
  });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(unroll_forward)

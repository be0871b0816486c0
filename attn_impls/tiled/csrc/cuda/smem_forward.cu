// tiled-smem: the first rung of the ladder. FlashAttention's tiles in shared memory, one thread a score.
//
// What:  a block of 32 x 32 threads owns 32 queries of one head. Tiles of 32 keys and 32 values pass through shared
//        memory; the scores never leave the registers. A warp is one query: lane j scores key j, shuffles give the
//        maximum and the sum of the row, and then lane d sums up output columns d, d + 32, ...
// Why:   every number of K and V is read from global memory once for 32 queries, and the score matrix, which naive
//        attention writes and reads several times, does not exist (Dao et al. 2022, arXiv:2205.14135).
// Limit: shared memory. A score loads two numbers for one multiply-add, and the lanes of a warp read one column of
//        the K tile, whose rows are head_dim floats apart: for head_dim 64 or 128 all 32 lie in one bank, so the read
//        takes 32 turns. No tensor cores are used. The next rungs take these on one at a time: padding, then register
//        tiles, then mma.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "launch.h"
#include "online_softmax.h"
#include "params.h"
#include "warp.h"

namespace attn {
namespace {

constexpr int kTile = kWarp;       // queries and keys a tile: one warp a query, one lane a key
constexpr int kMostHeadDim = 128;  // three tiles of 32 x 128 floats are the 48 KB that a block gets without asking

// Copy rows [begin, end) of one head to a tile [kTile, head_dim]. The warp of row i copies row i, neighbouring lanes
// neighbouring numbers.
template <typename T>
__device__ void load_tile(View<const T> from, int64_t batch, int64_t head, int64_t begin, int64_t end, int head_dim,
                          float* tile) {
  const int row = threadIdx.y;
  if (begin + row >= end) return;
  const T* source = from.row(batch, head, begin + row);
  for (int d = threadIdx.x; d < head_dim; d += kWarp) tile[row * head_dim + d] = to_float(source[d]);
}

template <typename T>
__global__ void __launch_bounds__(kTile* kTile) smem_forward_kernel(ForwardParams<T> p) {
  extern __shared__ float shared_memory[];
  const int head_dim = static_cast<int>(p.shape.head_dim);
  float* q_tile = shared_memory;
  float* k_tile = q_tile + kTile * head_dim;
  float* v_tile = k_tile + kTile * head_dim;

  // Consecutive blocks share a head, whose keys and values then stay in the L2 cache. The last tile of a head comes
  // first, because under a causal mask it has the most to do.
  const int64_t tiles = (p.shape.q_len + kTile - 1) / kTile;
  const int64_t index = blockIdx.x;
  const int64_t q0 = (tiles - 1 - index % tiles) * kTile;
  const int64_t head = index / tiles % p.shape.heads;
  const int64_t batch = index / tiles / p.shape.heads;
  const int64_t q1 = min(q0 + kTile, p.shape.q_len);
  const int64_t kv_head = head / p.shape.group();
  const int lane = threadIdx.x, row = threadIdx.y;
  const int64_t query = q0 + row;

  load_tile(p.q, batch, head, q0, q1, head_dim, q_tile);
  SoftmaxRow softmax = SoftmaxRow::empty();
  float out[kMostHeadDim / kWarp] = {};  // output column lane + 32 * c is out[c]

  for (int64_t k0 = 0; k0 < p.shape.kv_len; k0 += kTile) {
    const int64_t k1 = min(k0 + kTile, p.shape.kv_len);
    if (p.band.hides_tile(q0, q1, k0, k1)) continue;  // the same for the whole block, so no thread waits alone
    __syncthreads();                                  // every warp is done with the tiles before
    load_tile(p.k, batch, kv_head, k0, k1, head_dim, k_tile);
    load_tile(p.v, batch, kv_head, k0, k1, head_dim, v_tile);
    __syncthreads();

    float score = minus_infinity();
    if (query < q1 && k0 + lane < k1 && p.band.sees(query, k0 + lane)) {
      float dot = 0.0f;
      for (int d = 0; d < head_dim; ++d) dot += q_tile[row * head_dim + d] * k_tile[lane * head_dim + d];
      score = dot * p.scale_log2;
    }

    const float rescale = softmax.raise(warp_max(score));
    const float weight = exp2f(score - softmax.shift());
    softmax.sum = softmax.sum * rescale + warp_sum(weight);

    for (int c = 0; c < kMostHeadDim / kWarp; ++c) out[c] *= rescale;
    for (int j = 0; j < static_cast<int>(k1 - k0); ++j) {
      const float weight_j = __shfl_sync(kAllLanes, weight, j);
#pragma unroll
      for (int c = 0; c < kMostHeadDim / kWarp; ++c) {
        const int d = lane + kWarp * c;
        if (d < head_dim) out[c] += weight_j * v_tile[j * head_dim + d];
      }
    }
  }

  if (query >= q1) return;
  T* to = p.out.row(batch, head, query);
#pragma unroll
  for (int c = 0; c < kMostHeadDim / kWarp; ++c) {
    const int d = lane + kWarp * c;
    if (d < head_dim) to[d] = from_float<T>(out[c] * softmax.inverse_sum());
  }
  if (lane == 0) p.lse[(batch * p.shape.heads + head) * p.shape.q_len + query] = softmax.log_sum_exp();
}

std::tuple<Tensor, Tensor> smem_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                        int64_t high) {
  const Shape shape = check_inputs(q, k, v, scale);
  STD_TORCH_CHECK(shape.head_dim <= kMostHeadDim, "head_dim must be at most ", kMostHeadDim, ", got ", shape.head_dim);
  Tensor out = empty_in_order_of(q);
  Tensor lse = empty_lse(q);
  const int64_t tiles = (shape.q_len + kTile - 1) / kTile;
  const int64_t shared_bytes = 3 * kTile * shape.head_dim * static_cast<int64_t>(sizeof(float));
  with_device_type(q, [&](auto element) {
    using T = decltype(element);
    const ForwardParams<T> params{shape,
                                  view_of<const T>(q),
                                  view_of<const T>(k),
                                  view_of<const T>(v),
                                  view_of<T>(out),
                                  static_cast<float*>(lse.data_ptr()),
                                  static_cast<float>(scale * M_LOG2E),
                                  Band::from_diagonals(low, high)};
    launch(q, shape.batch * shape.heads * tiles, dim3(kWarp, kTile), shared_bytes, smem_forward_kernel<T>, params);
  });
  return {out, lse};
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def("smem_forward(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CUDA, library) {
  library.impl("smem_forward", TORCH_BOX(&attn::smem_forward));
}

// The kernel of the first rungs: one warp a query, one lane a key.
//
// A block of 32 x 32 threads owns 32 queries of one head and goes through tiles of 32 keys and 32 values. Lane j of a
// warp scores key j; shuffles give the maximum and the sum of the row; then lane d sums up output columns d, d + 32,
// ... The scores never leave the registers. A rung says where tiles lie and how they are read: its class Tiles.
#pragma once

#include "block.h"
#include "element.h"
#include "online_softmax.h"
#include "warp.h"

namespace attn {

constexpr int kTile = kWarp;  // queries and keys a tile
constexpr int kBlockThreads = kTile * kWarp;
// All 64 warps that an SM of compute capability 8.0 or 9.0 holds, with 32 registers a thread.
constexpr int kBlocksPerSm = 2;

// Tiles has
//   Tiles(p, block)                 take in the block's queries
//   load(k0, k1)                    take in keys and values [k0, k1); reached by the whole block or by no thread
//   dot(row, lane)                  the product of query `row` and key `lane` of the tile
//   add_values(weight, keys, out)   add weight * value of the tile's `keys` keys, the weight of key j in lane j
//   kColumns                        output columns a lane, 32 apart
template <typename Tiles, typename T>
__device__ void one_warp_a_query(const ForwardParams<T>& p) {
  const QueryBlock block = QueryBlock::mine(p.shape, kTile);
  const int lane = threadIdx.x, row = threadIdx.y;
  const int64_t query = block.q0 + row;

  Tiles tiles(p, block);
  SoftmaxRow softmax = SoftmaxRow::empty();
  float out[Tiles::kColumns] = {};  // output column lane + 32 * c is out[c]

  for (int64_t k0 = 0; k0 < p.shape.kv_len; k0 += kTile) {
    const int64_t k1 = min(k0 + kTile, p.shape.kv_len);
    if (p.band.hides_tile(block.q0, block.q1, k0, k1)) continue;  // the same for the whole block: no thread waits alone
    tiles.load(k0, k1);

    float score = minus_infinity();
    if (query < block.q1 && k0 + lane < k1 && p.band.sees(query, k0 + lane)) {
      score = tiles.dot(row, lane) * p.scale_log2;
    }
    const float rescale = softmax.raise(warp_max(score));
    const float weight = exp2f(score - softmax.shift());
    softmax.sum = softmax.sum * rescale + warp_sum(weight);

#pragma unroll
    for (int c = 0; c < Tiles::kColumns; ++c) out[c] *= rescale;
    tiles.add_values(weight, static_cast<int>(k1 - k0), out);
  }

  if (query >= block.q1) return;
  T* to = p.out.row(block.batch, block.head, query);
#pragma unroll
  for (int c = 0; c < Tiles::kColumns; ++c) {
    const int d = lane + kWarp * c;
    if (d < p.shape.head_dim) to[d] = from_float<T>(out[c] * softmax.inverse_sum());
  }
  if (lane == 0) p.lse[(block.batch * p.shape.heads + block.head) * p.shape.q_len + query] = softmax.log_sum_exp();
}

}  // namespace attn

// What the Hopper rungs share: a block's parameters and shared memory, its copies, and what a warpgroup does with them.
// The rungs differ in who starts the copies, and when.
#pragma once

#include "../cuda/fragment_softmax.h"
#include "../cuda/params.h"
#include "../cuda/query_tile.h"
#include "../cuda/tile_mask.h"
#include "choice.h"
#include "forward_tiles.h"
#include "pipeline.h"
#include "slab_tile.h"
#include "tma.h"
#include "wgmma.h"

namespace attn {

// The maps' boxes: Q all queries of a block, K and V a tile of keys, out the 16 rows of a warp.
struct HopperForwardParams {
  CUtensorMap q, k, v, out;
  Shape shape;
  float* lse;  // [batch, heads, q_len], contiguous
  float scale_log2;
  TileBand band;
};

// Shared memory, from a multiple of 1024 bytes on: Q, a ring of K tiles, a ring of V tiles, barriers. The output takes
// Q's place at the end.
template <typename Tiles>
struct ForwardBlock {
  using Q = Slabs<Tiles::kQueries, Tiles::kColumns>;
  using Kv = Slabs<Tiles::kKeys, Tiles::kColumns>;
  using Turn = attn::Turn<Tiles::kStages>;
  static constexpr int kBarriersAt = Q::kBytes + 2 * Tiles::kStages * Kv::kBytes;
  static constexpr int kBytes = kBarriersAt + 2 * Ring<Tiles::kStages>::kBytes + kBarrierBytes;

  const HopperForwardParams& p;
  uint32_t start;
  QueryTile mine;
  TileRange tiles;  // of keys that some query of the block sees; visited from the last to the first

  __device__ explicit ForwardBlock(const HopperForwardParams& params)
      : p(params), start(shared_memory_start()), mine(QueryTile::of_block(params.shape, Tiles::kQueries)) {
    tiles = key_tiles(p.band, mine.q0, mine.q1, kv_len(), Tiles::kKeys);
  }

  __device__ int kv_len() const { return static_cast<int>(p.shape.kv_len); }
  __device__ uint32_t q() const { return start; }
  __device__ uint32_t k(int stage) const { return start + Q::kBytes + stage * Kv::kBytes; }
  __device__ uint32_t v(int stage) const { return k(Tiles::kStages + stage); }
  __device__ Ring<Tiles::kStages> k_ring() const { return {start + kBarriersAt}; }
  __device__ Ring<Tiles::kStages> v_ring() const { return {start + kBarriersAt + Ring<Tiles::kStages>::kBytes}; }
  __device__ uint32_t q_full() const { return start + kBarriersAt + 2 * Ring<Tiles::kStages>::kBytes; }

  // All threads; the barriers can be used afterwards.
  __device__ void make_barriers() const {
    if (threadIdx.x == 0) {
      k_ring().make(Tiles::kWarpgroups * kWarpgroup / kWarp);
      v_ring().make(Tiles::kWarpgroups * kWarpgroup / kWarp);
      make_barrier(q_full(), 1);
      publish_barriers();
    }
    __syncthreads();
  }

  // By one thread, as are the following.
  __device__ void load_q() const {
    arrive_and_expect(q_full(), Q::kBytes);
    start_tile_load<Q>(q(), p.q, mine.q0, mine.head, mine.batch, q_full());
  }
  __device__ void load_k(int tile, Turn turn) const {
    k_ring().wait_until_empty(turn);
    start_tile_load<Kv>(k(turn.stage), p.k, tile * Tiles::kKeys, mine.kv_head, mine.batch,
                        k_ring().expect(turn, Kv::kBytes));
  }
  __device__ void load_v(int tile, Turn turn) const {
    v_ring().wait_until_empty(turn);
    start_tile_load<Kv>(v(turn.stage), p.v, tile * Tiles::kKeys, mine.kv_head, mine.batch,
                        v_ring().expect(turn, Kv::kBytes));
  }

  // The end of a warpgroup's work on its rows: write the output, by way of the queries' place, and the log-sum-exp.
  template <typename T, typename Out>
  __device__ __forceinline__ void finish(int group, int row, FragmentSoftmax<1>& softmax, const Out& out) const {
    float inverse[1][2], log_sum_exp[1][2];
    softmax.finish(inverse, log_sum_exp, p.scale_log2);
    const int64_t heads = p.shape.heads;
    store_row_numbers(log_sum_exp, p.lse + (mine.batch * heads + mine.head) * p.shape.q_len, mine.q0 + row, mine.q1);
    // All warps of the group are done with its queries, whose place this takes.
    with_one_of<Tiles::kWarpgroups>(group, [](auto i) { named_barrier<1 + decltype(i)::value>(kWarpgroup); });
    store_rounded<T, Q>(out, inverse, q(), row);
    publish_stores();
    __syncwarp();
    if (threadIdx.x % kWarp != 0 || mine.q0 + row >= mine.q1) return;
#pragma unroll
    for (int slab = 0; slab < Q::kCount; ++slab) {
      if (slab * kSlabColumns >= p.shape.head_dim) break;
      start_store(p.out, {slab * kSlabColumns, mine.q0 + row, mine.head, mine.batch},
                  q() + slab * Q::kSlabBytes + row * kSlabRowBytes);
    }
    wait_for_stores_to_read();
  }
};

}  // namespace attn

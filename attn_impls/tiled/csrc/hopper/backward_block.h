// A block of the Hopper backward: the keys that it takes up one tile after the other, the queries that it visits, its
// shared memory and its copies.
#pragma once

#include "../cuda/params.h"
#include "../cuda/tile_mask.h"
#include "backward_tiles.h"
#include "bulk_copy.h"
#include "pipeline.h"
#include "slab_tile.h"
#include "tma.h"

namespace attn {

// The maps' boxes: Q and dO a tile of queries, K and V a tile of keys. The rest is as in BackwardParams, `padded` being
// a multiple of a tile's queries.
template <typename T>
struct HopperBackwardParams {
  CUtensorMap q, k, v, dout;
  View<T> dk, dv;
  Shape shape;
  const float *lse_log2, *delta;
  float* dq_sum;
  int* fetched;  // how many tiles of keys have been taken up
  int* added;    // [batch, heads, tiles of queries]: the warps that have added to dQ, or null where any order will do
  int padded;
  float scale, scale_log2;
  TileBand band;
};

// A tile of queries of one of the query heads that read the block's key head.
struct Visit {
  int head, tile;
};

// Shared memory, from a multiple of 1024 bytes on: K, V, a ring of Q tiles, a ring of dO tiles, two dS, the dQ of each
// warp, the rows' numbers of both rings, barriers, a note of which keys these are.
template <typename T, typename Tiles>
struct BackwardBlock {
  static constexpr int kStages = Tiles::kStages, kWarps = Tiles::kWarpgroups * kWarpgroup / kWarp;
  using Kv = Slabs<Tiles::kKeys, Tiles::kColumns>;
  using Rows = Slabs<Tiles::kQueries, Tiles::kColumns>;
  using Ds = Slabs<Tiles::kKeys, Tiles::kQueries>;
  using Turn = attn::Turn<kStages>;
  static constexpr int kRowNumbers = Tiles::kQueries * 4;
  static constexpr int kWarpDq = Tiles::kQueries * Tiles::kColumns * 4 / kWarps;
  static constexpr int kQAt = 2 * Kv::kBytes, kDoAt = kQAt + kStages * Rows::kBytes;
  static constexpr int kDsAt = kDoAt + kStages * Rows::kBytes, kDqAt = kDsAt + 2 * Ds::kBytes;
  static constexpr int kNumbersAt = kDqAt + kWarps * kWarpDq;
  static constexpr int kBarriersAt = kNumbersAt + 2 * kStages * kRowNumbers;
  static constexpr int kNoteAt = kBarriersAt + 2 * Ring<kStages>::kBytes + 2 * kBarrierBytes;
  static constexpr int kBytes = kNoteAt + 16;
  static_assert(kNoteAt % 16 == 0);

  const HopperBackwardParams<T>& p;
  uint32_t start;
  int batch, kv_head, key_tile, k0, k1;
  TileRange tiles, plain;  // of queries that see some of these keys, and all of them
  int end;                 // the first head that is not visited

  __device__ explicit BackwardBlock(const HopperBackwardParams<T>& params) : p(params), start(shared_memory_start()) {}

  __device__ int key_tiles_of_head() const {
    return (static_cast<int>(p.shape.kv_len) + Tiles::kKeys - 1) / Tiles::kKeys;
  }
  // How many tiles of keys there are, of all heads.
  __device__ int count() const { return static_cast<int>(p.shape.batch * p.shape.kv_heads) * key_tiles_of_head(); }

  // Take up the `index`-th. The first tile of a head comes first: under a causal mask most queries see it, and what is
  // left for the end is short. In a fixed order of additions the last comes first, and is the first to add: under a
  // causal mask nobody adds before it to the queries that it begins with, and when it comes to those that the next
  // block began with, that block is as far ahead of it as these are, so that nobody waits.
  __device__ void take(int index) {
    const int kv_heads = static_cast<int>(p.shape.kv_heads), of_head = key_tiles_of_head();
    const int tile = index % of_head;
    kv_head = index / of_head % kv_heads;
    batch = index / of_head / kv_heads;
    key_tile = p.added == nullptr ? tile : of_head - 1 - tile;
    find_queries();
  }
  // How many tiles add to dQ of queries [q0, q1) before this one.
  __device__ int adds_before(int q0, int q1) const {
    return key_tiles(p.band, q0, q1, static_cast<int>(p.shape.kv_len), Tiles::kKeys).last - 1 - key_tile;
  }

  // for (Visit at = first(); at.head < end; advance(at))
  __device__ Visit first() const { return {kv_head * static_cast<int>(p.shape.group()), tiles.first}; }
  __device__ void advance(Visit& at) const {
    if (++at.tile < tiles.last) return;
    at.tile = tiles.first;
    ++at.head;
  }
  // Of a visit's first query among the padded rows of all heads. No memory holds the sums of 2^31 rows.
  __device__ int padded_row(Visit at) const {
    return (batch * static_cast<int>(p.shape.heads) + at.head) * p.padded + at.tile * Tiles::kQueries;
  }

  __device__ uint32_t k() const { return start; }
  __device__ uint32_t v() const { return start + Kv::kBytes; }
  __device__ uint32_t q(int stage) const { return start + kQAt + stage * Rows::kBytes; }
  __device__ uint32_t dout(int stage) const { return start + kDoAt + stage * Rows::kBytes; }
  __device__ uint32_t ds(int which) const { return start + kDsAt + which * Ds::kBytes; }
  __device__ uint32_t dq(int warp) const { return start + kDqAt + warp * kWarpDq; }
  __device__ uint32_t lse(int stage) const { return start + kNumbersAt + stage * kRowNumbers; }
  __device__ uint32_t delta(int stage) const { return lse(kStages + stage); }
  __device__ Ring<kStages> q_ring() const { return {start + kBarriersAt}; }
  __device__ Ring<kStages> do_ring() const { return {start + kBarriersAt + Ring<kStages>::kBytes}; }
  __device__ uint32_t kv_full() const { return start + kBarriersAt + 2 * Ring<kStages>::kBytes; }
  __device__ uint32_t kv_empty() const { return kv_full() + kBarrierBytes; }

  // All threads; the barriers can be used afterwards.
  __device__ void make_barriers() const {
    if (threadIdx.x == 0) {
      q_ring().make(kWarps);
      do_ring().make(kWarps);
      make_barrier(kv_full(), 1);
      make_barrier(kv_empty(), kWarps * kWarpArrivals);
      publish_barriers();
    }
    __syncthreads();
  }

  // By one thread, as is what it calls: everything that the block reads, as far ahead as there is place. Keys are
  // fetched in the order of their numbers, so that those that others wait for are being worked at. There is time for
  // it, and place for the first queries: those before still have queries to visit.
  __device__ void load() {
    Turn turn;
    store_shared(note(), 1);
    while (true) {
      const int index = atomicAdd(p.fetched, 1);
      if (index >= count()) break;
      take(index);
      Visit at = first();
      if (at.head < end) {
        load_visit(at, turn);
        advance(at);
      }
      const uint32_t parity = wait_for_note();
      store_shared(note(), uint4{1 + (parity ^ 1), static_cast<uint32_t>(batch), static_cast<uint32_t>(kv_head),
                                 static_cast<uint32_t>(key_tile)});
      load_keys();
      for (; at.head < end; advance(at)) load_visit(at, turn);
    }
    wait_for_note();
    store_shared(note(), 0);
    arrive(kv_full());
  }

  // The reading warps: wait for the keys of this phase and take them up, or return that there are none.
  __device__ bool next_keys(uint32_t parity) {
    wait_for_phase(kv_full(), parity);
    const uint4 words = load_shared_16_bytes(note());
    if (same_for_warp(words.x) == 0) return false;
    recall(words);
    find_queries();
    return true;
  }
  // All of the warp are done with K and V. What the note says is read once more, so that no registers hold it
  // meanwhile. Returns the parity of the next phase.
  __device__ uint32_t release_keys() {
    const uint4 words = load_shared_16_bytes(note());
    recall(words);
    find_keys();
    __syncwarp();  // all lanes have read it
    arrive_for_warp(kv_empty());
    return same_for_warp(words.x) - 1;
  }

 private:
  // 0, or 1 and the parity of the next phase; batch, key head, tile of keys.
  __device__ uint32_t note() const { return start + kNoteAt; }

  __device__ void recall(const uint4& words) {
    batch = same_for_warp(words.y);
    kv_head = same_for_warp(words.z);
    key_tile = same_for_warp(words.w);
  }
  __device__ void find_keys() {
    k0 = key_tile * Tiles::kKeys;
    k1 = min(k0 + Tiles::kKeys, static_cast<int>(p.shape.kv_len));
  }
  __device__ void find_queries() {
    find_keys();
    const int kv_len = static_cast<int>(p.shape.kv_len), q_len = static_cast<int>(p.shape.q_len);
    tiles = query_tiles(p.band, k0, k1, q_len, Tiles::kQueries);
    plain = k0 + Tiles::kKeys > kv_len ? TileRange{0, 0} : plain_query_tiles(p.band, k0, k1, q_len, Tiles::kQueries);
    end = tiles.first < tiles.last ? (kv_head + 1) * static_cast<int>(p.shape.group()) : 0;
  }

  __device__ void load_keys() const {
    arrive_and_expect(kv_full(), 2 * Kv::kBytes);
    start_tile_load<Kv>(k(), p.k, k0, kv_head, batch, kv_full());
    start_tile_load<Kv>(v(), p.v, k0, kv_head, batch, kv_full());
  }
  __device__ void load_visit(Visit at, Turn& turn) const {
    load_rows(q_ring(), turn, at, p.q, q(turn.stage), p.lse_log2, lse(turn.stage));
    load_rows(do_ring(), turn, at, p.dout, dout(turn.stage), p.delta, delta(turn.stage));
    turn.advance();
  }
  // Until nobody needs the keys before and the note of them any more. Returns the parity of the next phase.
  __device__ uint32_t wait_for_note() const {
    const uint32_t parity = load_shared_word(note()) - 1;
    wait_for_phase(kv_empty(), parity ^ 1);
    return parity;
  }
  __device__ void load_rows(Ring<kStages> ring, Turn turn, Visit at, const CUtensorMap& map, uint32_t to,
                            const float* numbers, uint32_t numbers_to) const {
    ring.wait_until_empty(turn);
    const uint32_t barrier = ring.expect(turn, Rows::kBytes + kRowNumbers);
    start_tile_load<Rows>(to, map, at.tile * Tiles::kQueries, at.head, batch, barrier);
    start_run_load(numbers_to, numbers + padded_row(at), kRowNumbers, barrier);
  }
};

}  // namespace attn

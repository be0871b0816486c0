// A block that computes one query tile after the other: what it is given, its shared memory and its copies. While the
// end of a tile is computed, the copies of the next are under way.
#pragma once

#include "forward_tiles.h"
#include "pipeline.h"
#include "schedule.h"
#include "slab_tile.h"
#include "tma.h"

namespace attn {

// The maps' boxes: Q all queries of a tile, K and V a tile of keys.
template <typename T>
struct PersistentParams {
  CUtensorMap q, k, v;
  Shape shape;
  View<T> out;
  float* lse;  // [batch, heads, q_len], contiguous
  float scale_log2;
  TileBand band;
  Schedule schedule;
};

// A query tile and the key tiles that some query of it sees, visited from the last to the first. Where no query sees
// any key there still is one, hidden altogether: one kind of loop for all.
struct Work {
  QueryTile queries;
  TileRange tiles;

  template <typename Tiles, typename Params>
  __device__ static Work of(const Params& p, int index) {
    Work work{p.schedule.tile(index, p.shape, Tiles::kQueries), {0, 1}};
    const TileRange seen =
        key_tiles(p.band, max(work.queries.q0, 0), work.queries.q1, static_cast<int>(p.shape.kv_len), Tiles::kKeys);
    if (seen.first < seen.last) work.tiles = seen;
    return work;
  }
};

// Shared memory, from a multiple of 1024 bytes on: a ring of Q tiles, one of K tiles, one of V tiles, their barriers,
// and beside each Q a note of its work: finding it takes divisions, which would keep those that compute from computing.
template <typename T, typename Tiles>
struct PersistentBlock {
  using Q = Slabs<Tiles::kQueries, Tiles::kColumns>;
  using Kv = Slabs<Tiles::kKeys, Tiles::kColumns>;
  using QRing = Ring<Tiles::kQStages>;
  using KvRing = Ring<Tiles::kStages>;
  using QTurn = Turn<Tiles::kQStages>;
  using KvTurn = Turn<Tiles::kStages>;
  static constexpr int kKvAt = Tiles::kQStages * Q::kBytes;
  static constexpr int kBarriersAt = kKvAt + 2 * Tiles::kStages * Kv::kBytes;
  static constexpr int kNotesAt = kBarriersAt + QRing::kBytes + 2 * KvRing::kBytes, kNoteBytes = 32;
  static constexpr int kBytes = kNotesAt + Tiles::kQStages * kNoteBytes;
  static_assert(kNotesAt % 16 == 0);

  const PersistentParams<T>& p;
  uint32_t start;

  // ptxas reads a special register for the start of shared memory in every step, unless it comes by way of others.
  __device__ explicit PersistentBlock(const PersistentParams<T>& params)
      : p(params), start(one_for_warp(shared_memory_start())) {}

  __device__ uint32_t q(QTurn turn) const { return start + turn.stage * Q::kBytes; }
  __device__ uint32_t k(KvTurn turn) const { return start + kKvAt + turn.stage * Kv::kBytes; }
  __device__ uint32_t v(KvTurn turn) const { return k(turn) + Tiles::kStages * Kv::kBytes; }
  __device__ uint32_t note(QTurn turn) const { return start + kNotesAt + turn.stage * kNoteBytes; }
  __device__ QRing q_ring() const { return {start + kBarriersAt}; }
  __device__ KvRing k_ring() const { return {start + kBarriersAt + QRing::kBytes}; }
  __device__ KvRing v_ring() const { return {start + kBarriersAt + QRing::kBytes + KvRing::kBytes}; }

  // All threads; the barriers can be used afterwards.
  __device__ void make_barriers() const {
    if (threadIdx.x == 0) {
      prefetch_map(p.q);
      prefetch_map(p.k);
      prefetch_map(p.v);
      constexpr int kReaders = Tiles::kWarpgroups * kWarpgroup / kWarp;
      q_ring().make(kReaders);
      k_ring().make(kReaders);
      v_ring().make(kReaders);
      publish_barriers();
    }
    __syncthreads();
  }

  // By one thread: all copies of all query tiles of this block. The first keys are asked for before the queries, whose
  // place becomes free later. The next query tile is asked for with the last keys of this one: a block that asks sooner
  // takes a tile that others would come to first, and after a long one another long one.
  __device__ void copy() const {
    QTurn q_turn;
    KvTurn turn;
    int index = p.schedule.first();
    for (int round = 1; index < p.schedule.count(); ++round, q_turn.advance()) {
      int asked = 0;
      const Work work = Work::of<Tiles>(p, index);
      const QueryTile& from = work.queries;
      for (int tile = work.tiles.last - 1; tile >= work.tiles.first; --tile, turn.advance()) {
        if (tile == work.tiles.first) asked = p.schedule.ask(round);
        k_ring().wait_until_empty(turn);
        start_tile_load<Kv>(k(turn), p.k, tile * Tiles::kKeys, from.kv_head, from.batch,
                            k_ring().expect(turn, Kv::kBytes));
        if (tile == work.tiles.last - 1) {
          const uint32_t full = announce(q_turn, work, Q::kBytes);
          start_tile_load<Q>(q(q_turn), p.q, from.q0, from.head, from.batch, full);
        }
        v_ring().wait_until_empty(turn);
        start_tile_load<Kv>(v(turn), p.v, tile * Tiles::kKeys, from.kv_head, from.batch,
                            v_ring().expect(turn, Kv::kBytes));
      }
      index = p.schedule.answer(asked);
    }
    announce(q_turn, Work{{}, {0, 0}}, 0);
  }

  // The reading warps: wait for the queries of this turn. Their work has no key tiles where there is no more of it.
  __device__ Work wait_for_work(QTurn turn) const {
    q_ring().wait_until_full(turn);
    return noted_work(turn);
  }
  // The same once more, before the queries are released.
  __device__ Work noted_work(QTurn turn) const {
    const uint4 words = load_shared_16_bytes(note(turn));
    Work work;
    work.queries.batch = same_for_warp(words.x);
    work.queries.head = same_for_warp(words.y);
    work.queries.q0 = same_for_warp(words.z);
    work.queries.q1 = work.queries.q0 + Tiles::kQueries;
    work.tiles = {same_for_warp(words.w), same_for_warp(load_shared_word(note(turn) + 16))};
    return work;
  }

 private:
  // The barrier's phase ends after these stores, and whoever waits for it sees them.
  __device__ uint32_t announce(QTurn turn, const Work& work, int bytes) const {
    q_ring().wait_until_empty(turn);
    const QueryTile& queries = work.queries;
    store_shared(note(turn), uint4{static_cast<uint32_t>(queries.batch), static_cast<uint32_t>(queries.head),
                                   static_cast<uint32_t>(queries.q0), static_cast<uint32_t>(work.tiles.first)});
    store_shared(note(turn) + 16, static_cast<uint32_t>(work.tiles.last));
    return q_ring().expect(turn, bytes);
  }
};

}  // namespace attn

// The 64 queries of a warpgroup, query tile after query tile, as one sequence of key tiles that has no gaps.
//
// Either softmax and product follow one another, or, as in attend_overlapped() of forward_rows.h, the softmax of a key
// tile runs beside the product of the weights before with their values. Here this holds across query tiles too: the
// last product of one runs beside the first softmax of the next, and only then the one's output is written. Nothing
// waits for a first load, and the tensor cores have work while the output is converted and stored.
#pragma once

#include "../cuda/fragment_softmax.h"
#include "persistent_block.h"
#include "wgmma.h"
#include "write_rows.h"

namespace attn {

template <typename T, typename Tiles>
class PersistentRows {
 public:
  using Block = PersistentBlock<T, Tiles>;

  __device__ __forceinline__ PersistentRows(const Block& given, int group)
      : block(given),
        p(given.p),
        number(group),
        row(group * kWarpgroupRows + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * kPiece) {
    softmax.clear();
    out.clear();
  }

  // One thing after the other, so that three warpgroups fit at head dim 128; another one's products fill the gaps. What
  // a warpgroup sees nothing of, on a diagonal or past the last query, it leaves out, and the others have more of the
  // tensor cores.
  __device__ __forceinline__ void attend_in_turn() {
    for (uint32_t round = 0;; ++round) {
      q_turn = QTurn::after(round);  // one register less than one that is advanced
      if (!next_work()) return;
      pass_down_to(seen_last());
      if constexpr (Tiles::kHalves) {
        if (tile >= work.tiles.first && seen_end() <= tile * Tiles::kKeys + Tiles::kKeys / 2) {
          take_in_turn<Tiles::kKeys / 2>();
          --tile;
          turn.advance();
        }
      }
      for (; tile >= work.tiles.first; --tile, turn.advance()) take_in_turn<Tiles::kKeys>();
      const QueryTile ended = block.noted_work(q_turn).queries;  // registers did not keep it
      block.q_ring().release_after_loads(q_turn);
      float inverse[1][2];
      end_softmax(inverse, ended);
      write(inverse, ended);
      out.clear();
    }
  }

  __device__ __forceinline__ void attend_overlapped() {
    if (!next_work()) return;
    Weights weights;
    {
      Scores scores;
      block.k_ring().wait_until_full(turn);
      start_scores(scores);
      wait_for_products<0>();
      pin(scores);
      release_keys();
      hide(scores);
      softmax.follow(scores, out, p.scale_log2);
      softmax.weigh(scores, p.scale_log2);
      weights = Weights::template rounded<T>(scores);
      block.v_ring().wait_until_full(turn);
    }
    KvTurn before = turn;
    turn.advance();
    for (;;) {
      float inverse[1][2], factor[1][2];
      if constexpr (Tiles::kInner) {
        while (tile != work.tiles.first) {
          --tile;
          if (step(weights, before, false, work.queries, inverse, factor)) softmax.rescale(out, factor);
          before = turn;
          turn.advance();
        }
      }
      const bool ends = Tiles::kInner || tile == work.tiles.first;  // the weights are the last of their queries
      const QueryTile ended = work.queries;
      if (!ends) {
        --tile;
      } else {
        q_turn.advance();
        if (!next_work()) break;
      }
      const bool outgrown = step(weights, before, ends, ended, inverse, factor);
      if (ends) {
        write(inverse, ended);
        out.clear();
      } else if (outgrown) {
        softmax.rescale(out, factor);
      }
      before = turn;
      turn.advance();
    }
    start_output(weights, before);
    wait_for_products<0>();
    pin(out);
    float inverse[1][2];
    end_softmax(inverse, work.queries);
    write(inverse, work.queries);
  }

 private:
  using Q = typename Block::Q;
  using Kv = typename Block::Kv;
  using QTurn = typename Block::QTurn;
  using KvTurn = typename Block::KvTurn;
  using Scores = Accumulator<1, Tiles::kKeys / kChunk>;
  using Weights = Held<1, Tiles::kKeys / kPiece>;

  // Scores, their softmax and the product with their values of the first `keys` keys of a tile.
  template <int keys>
  __device__ __forceinline__ void take_in_turn() {
    Accumulator<1, keys / kChunk> scores;
    block.k_ring().wait_until_full(turn);
    start_scores(scores);
    wait_for_products<0>();
    pin(scores);
    block.k_ring().release(turn);
    hide(scores);
    softmax.follow(scores, out, p.scale_log2);
    softmax.weigh(scores, p.scale_log2);
    const auto weights = Held<1, keys / kPiece>::template rounded<T>(scores);
    block.v_ring().wait_until_full(turn);
    start_output(weights, turn);
    wait_for_products<0>();
    pin(out);
    block.v_ring().release(turn);
  }

  // The next scores and their softmax beside the product of `weights` with the values of `before`; afterwards weights
  // are those of the scores. Returns whether the output is to be multiplied by `factor`.
  __device__ __forceinline__ bool step(Weights& weights, KvTurn before, bool ends, const QueryTile& ended,
                                       float (&inverse)[1][2], float (&factor)[1][2]) {
    Scores scores;
    block.k_ring().wait_until_full(turn);
    start_scores(scores);
    start_output(weights, before);
    wait_for_products<1>();
    pin(scores);
    release_keys();

    hide(scores);
    if (ends) end_softmax(inverse, ended);
    const bool outgrown = softmax.follow_apart(scores, factor, p.scale_log2);
    softmax.weigh(scores, p.scale_log2);
    pin(scores);
    // The values of these weights. Waiting for them here is early enough for their product, and a loop, which the
    // compiler does not move the exponentials across: in one block it puts them off until after the next wait.
    block.v_ring().wait_until_full(turn);
    wait_for_products<0>();
    pin(out);
    block.v_ring().release(before);
    weights = Weights::template rounded<T>(scores);
    return outgrown;
  }

  // Begin with the queries of this q_turn. Returns whether there are any, and leaves those before where there are not.
  __device__ __forceinline__ bool next_work() {
    const Work next = block.wait_for_work(q_turn);
    if (next.tiles.last == 0) return false;
    work = next;
    tile = work.tiles.last - 1;
    if constexpr (Tiles::kOverlaps) plain = plain_tiles();
    return true;
  }
  // The key tiles that all rows of the warpgroup see whole.
  __device__ __forceinline__ TileRange plain_tiles() const {
    const int q0 = work.queries.q0 + number * kWarpgroupRows;
    return plain_key_tiles(p.band, q0, q0 + kWarpgroupRows, static_cast<int>(p.shape.kv_len), Tiles::kKeys);
  }
  // Behind the last key tile that a row of the warpgroup sees.
  __device__ __forceinline__ int seen_last() const {
    const int q0 = work.queries.q0 + number * kWarpgroupRows, q1 = q0 + kWarpgroupRows;
    const TileRange seen = key_tiles(p.band, max(q0, 0), q1, static_cast<int>(p.shape.kv_len), Tiles::kKeys);
    return q1 > 0 && seen.first < seen.last ? seen.last : work.tiles.first;
  }
  // Behind the last key that a row of the warpgroup sees.
  __device__ __forceinline__ int seen_end() const {
    const int q1 = work.queries.q0 + (number + 1) * kWarpgroupRows;
    return min(q1 + p.band.high, static_cast<int>(p.shape.kv_len));
  }
  // Leave out the tiles from this one down to `end`.
  __device__ __forceinline__ void pass_down_to(int end) {
    for (; tile >= end; --tile, turn.advance()) {
      block.k_ring().wait_until_full(turn);
      __syncwarp();  // no product keeps the warp together here; a lane that falls behind would miss the phase's end
      block.k_ring().release(turn);
      block.v_ring().wait_until_full(turn);
      __syncwarp();
      block.v_ring().release(turn);
    }
  }
  // The scores are there: the keys have been read, and with the last of them the queries.
  __device__ __forceinline__ void release_keys() const {
    block.k_ring().release(turn);
    if (tile == work.tiles.first) block.q_ring().release_after_loads(q_turn);
  }
  template <typename C>
  __device__ __forceinline__ void start_scores(C& scores) const {
    begin_products();
    start_product<T, Tiles::kColumns / kPiece>(scores, AlongRows<Q>::of(block.q(q_turn), number * kWarpgroupRows),
                                               AlongRows<Kv>::of(block.k(turn)), false);
    commit_products();
  }
  template <int pieces>
  __device__ __forceinline__ void start_output(const Held<1, pieces>& weights, KvTurn of) {
    pin(out);
    begin_products();
    start_product<T, pieces>(out, weights, AcrossRows<Kv>::of(block.v(of)));
    commit_products();
  }
  template <typename C>
  __device__ __forceinline__ void hide(C& scores) const {
    // Three warpgroups at head dim 128 have no registers to keep this.
    const TileRange range = Tiles::kOverlaps ? plain : plain_tiles();
    if (range.has(tile)) return;
    const int kv_len = static_cast<int>(p.shape.kv_len);
    const TileMask mask = TileMask::of(p.band, work.queries.q0, tile * Tiles::kKeys, kv_len);
    if (p.band.low > -kFarthest)
      hide_ends<true>(scores, mask, row);
    else
      hide_ends<false>(scores, mask, row);
  }
  __device__ __forceinline__ void end_softmax(float (&inverse)[1][2], const QueryTile& queries) {
    float log_sum_exp[1][2];
    softmax.finish(inverse, log_sum_exp);
    softmax.clear();
    float* const lse = p.lse + (queries.batch * p.shape.heads + queries.head) * p.shape.q_len;
    store_row_numbers(log_sum_exp, lse, queries.q0 + row, queries.q1);
  }
  __device__ __forceinline__ void write(const float (&inverse)[1][2], const QueryTile& queries) const {
    write_rows(out, inverse, p.out, queries.batch, queries.head, queries.q0 + row, queries.q1,
               static_cast<int>(p.shape.head_dim));
  }

  const Block& block;
  const PersistentParams<T>& p;
  const int number, row;  // of the warpgroup, and of its warp's first query in the query tile
  FragmentSoftmax<1> softmax;
  Accumulator<1, Tiles::kColumns / kChunk> out;
  Work work;
  TileRange plain;
  int tile;
  KvTurn turn;
  QTurn q_turn;
};

}  // namespace attn

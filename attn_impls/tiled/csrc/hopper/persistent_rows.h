// The 64 queries of a warpgroup, query tile after query tile, as one sequence of key tiles that has no gaps.
//
// As in attend_overlapped() of forward_rows.h the softmax of a key tile runs beside the product of the weights before
// with their values. Here this holds across query tiles too: the last product of one runs beside the first softmax of
// the next, and only then the one's output is written. Nothing waits for a first load, and the tensor cores have work
// while the output is converted and stored.
#pragma once

#include "../cuda/fragment_softmax.h"
#include "choice.h"
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

  // One thing after the other, so that three warpgroups fit at head dim 128; another one's products fill the gaps.
  __device__ __forceinline__ void attend_in_turn() {
    for (; next_work(); q_turn.advance()) {
      for (; tile >= work.tiles.first; --tile, turn.advance()) {
        Scores scores;
        block.k_ring().wait_until_full(turn);
        start_scores(scores);
        wait_for_products<0>();
        pin(scores);
        release_keys();
        hide(scores);
        softmax.follow(scores, out, p.scale_log2);
        weigh(scores);
        const Weights weights = Weights::template rounded<T>(scores);
        block.v_ring().wait_until_full(turn);
        start_output(weights, turn);
        wait_for_products<0>();
        pin(out);
        block.v_ring().release(turn);
      }
      float inverse[1][2];
      end_softmax(inverse, work.queries);
      write(inverse, work.queries);
      out.clear();
    }
  }

  __device__ __forceinline__ void attend_overlapped() {
    pass_turn_on(Tiles::kWarpgroups - 1);  // the first warpgroup begins
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
      weigh(scores);
      weights = Weights::template rounded<T>(scores);
      block.v_ring().wait_until_full(turn);
    }
    KvTurn before = turn;
    turn.advance();
    for (;;) {
      const bool ends = tile == work.tiles.first;  // the weights are the last of their queries
      const QueryTile ended = work.queries;
      if (!ends) {
        --tile;
      } else {
        q_turn.advance();
        if (!next_work()) break;
      }
      float inverse[1][2], factor[1][2];
      const bool outgrown = step_of_what_is_seen(weights, before, ends, ended, inverse, factor);
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
    if (number == 0) wait_for_turn();  // what the last warpgroup passed on, so that no barrier is left half full
  }

 private:
  using Q = typename Block::Q;
  using Kv = typename Block::Kv;
  using QTurn = typename Block::QTurn;
  using KvTurn = typename Block::KvTurn;
  using Scores = Accumulator<1, Tiles::kKeys / kChunk>;
  using Weights = Held<1, Tiles::kKeys / kPiece>;

  // The next scores and their softmax beside the product of `weights` with the values of `before`; afterwards weights
  // are those of the scores. Returns whether the output is to be multiplied by `factor`. Of this tile the first `keys`
  // keys take part, of the one before the first `keys_before`.
  template <int keys, int keys_before>
  __device__ __forceinline__ bool step(Weights& weights, KvTurn before, bool ends, const QueryTile& ended,
                                       float (&inverse)[1][2], float (&factor)[1][2]) {
    Accumulator<1, keys / kChunk> scores;
    block.k_ring().wait_until_full(turn);
    wait_for_turn();
    start_scores(scores);
    start_output<keys_before>(weights, before);
    pass_turn_on(number);
    wait_for_products<1>();
    pin(scores);
    release_keys();

    hide(scores);
    if (ends) end_softmax(inverse, ended);
    const bool outgrown = softmax.follow_apart(scores, factor, p.scale_log2);
    weigh(scores);
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
  // The same, of half a tile where the keys of the other half are hidden from all rows or past the end: on a diagonal,
  // from the upper warpgroup. The choice is between whole steps, which leave no product under way: products that a
  // branch chooses within one, ptxas makes wait for each other.
  __device__ __forceinline__ bool step_of_what_is_seen(Weights& weights, KvTurn before, bool ends,
                                                       const QueryTile& ended, float (&inverse)[1][2],
                                                       float (&factor)[1][2]) {
    constexpr int kKeys = Tiles::kKeys;
    if constexpr (Tiles::kHalves) {
      constexpr int kHalf = kKeys / 2;
      const bool half_before = half;
      half = seen_end <= tile * kKeys + kHalf;
      // After a half another is rare, and the weights that it lacks are zeros.
      if (half) return step<kHalf, kKeys>(weights, before, ends, ended, inverse, factor);
      if (half_before) return step<kKeys, kHalf>(weights, before, ends, ended, inverse, factor);
    }
    return step<kKeys, kKeys>(weights, before, ends, ended, inverse, factor);
  }

  // Begin with the queries of this q_turn. Returns whether there are any, and leaves those before where there are not.
  __device__ __forceinline__ bool next_work() {
    const Work next = block.wait_for_work(q_turn);
    if (next.tiles.last == 0) return false;
    work = next;
    tile = work.tiles.last - 1;
    const int q0 = work.queries.q0 + number * kWarpgroupRows, q1 = min(q0 + kWarpgroupRows, work.queries.q1);
    plain = plain_key_tiles(p.band, q0, q1, static_cast<int>(p.shape.kv_len), Tiles::kKeys);
    seen_end = min(q1 + p.band.high, static_cast<int>(p.shape.kv_len));
    return true;
  }
  // The scores are there: the keys have been read, and with the last of them the queries.
  __device__ __forceinline__ void release_keys() const {
    block.k_ring().release(turn);
    if (tile == work.tiles.first) block.q_ring().release(q_turn);
  }
  template <typename Scores>
  __device__ __forceinline__ void start_scores(Scores& scores) const {
    begin_products();
    start_product<T, Tiles::kColumns / kPiece>(scores, AlongRows<Q>::of(block.q(q_turn), number * kWarpgroupRows),
                                               AlongRows<Kv>::of(block.k(turn)), false);
    commit_products();
  }
  template <int keys = Tiles::kKeys>
  __device__ __forceinline__ void start_output(const Weights& weights, KvTurn of) {
    pin(out);
    begin_products();
    start_product<T, keys / kPiece>(out, weights, AcrossRows<Kv>::of(block.v(of)));
    commit_products();
  }
  template <typename Scores>
  __device__ __forceinline__ void hide(Scores& scores) const {
    if (plain.has(tile)) return;
    const int kv_len = static_cast<int>(p.shape.kv_len);
    const TileMask mask = TileMask::of(p.band, work.queries.q0, tile * Tiles::kKeys, kv_len);
    if (p.band.low > -kFarthest)
      hide_ends<true>(scores, mask, row);
    else
      hide_ends<false>(scores, mask, row);
  }
  template <typename Scores>
  __device__ __forceinline__ void weigh(Scores& scores) {
    softmax.template weigh<0, Scores::kColumnTiles, Tiles::kPolynomial>(scores, p.scale_log2);
  }
  __device__ __forceinline__ void end_softmax(float (&inverse)[1][2], const QueryTile& queries) {
    float log_sum_exp[1][2];
    softmax.finish(inverse, log_sum_exp, p.scale_log2);
    softmax.clear();
    float* const lse = p.lse + (queries.batch * p.shape.heads + queries.head) * p.shape.q_len;
    store_row_numbers(log_sum_exp, lse, queries.q0 + row, queries.q1);
  }
  __device__ __forceinline__ void write(const float (&inverse)[1][2], const QueryTile& queries) const {
    write_rows(out, inverse, p.out, queries.batch, queries.head, queries.q0 + row, queries.q1,
               static_cast<int>(p.shape.head_dim));
  }

  // Taking turns ("ping-pong"): a warpgroup starts its products when the warpgroup before has started its own, so that
  // they are at different places of the loop and one's exponentials are under the other's products. All warpgroups make
  // the same number of steps.
  __device__ __forceinline__ void wait_for_turn() const {
    if constexpr (Tiles::kTurns) {
      with_one_of<Tiles::kWarpgroups>(number, [](auto i) { named_barrier<1 + decltype(i)::value>(2 * kWarpgroup); });
    }
  }
  __device__ __forceinline__ void pass_turn_on(int by) const {
    if constexpr (Tiles::kTurns) {
      if (number != by) return;
      with_one_of<Tiles::kWarpgroups>(number, [](auto i) {
        constexpr int kNext = (decltype(i)::value + 1) % Tiles::kWarpgroups;
        arrive_at_named_barrier<1 + kNext>(2 * kWarpgroup);
      });
    }
  }

  const Block& block;
  const PersistentParams<T>& p;
  const int number, row;  // of the warpgroup, and of its warp's first query in the query tile
  FragmentSoftmax<1> softmax;
  Accumulator<1, Tiles::kColumns / kChunk> out;
  Work work;
  TileRange plain;
  int tile, seen_end;  // behind the last key that a row of the warpgroup sees
  bool half = false;   // whether the last step was of half a tile
  KvTurn turn;
  QTurn q_turn;
};

}  // namespace attn

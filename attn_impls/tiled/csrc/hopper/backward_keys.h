// The 64 keys of a warpgroup: their dK and dV, summed up in registers, and their share of dQ.
//
// Scores are computed transposed, K Q^T, and so are the gradients of the weights, V dO^T: rows are the warpgroup's own
// keys. Rounded in place they are the A of dV += P^T dO and dK += dS^T Q. Only dQ = dS K sums over the keys of all
// warpgroups: dS^T goes to shared memory, of which wgmma takes the transpose, and each warpgroup computes a quarter to a
// half of dQ, 64 x 64 numbers: 64 queries, or 64 columns.
#pragma once

#include "backward_block.h"
#include "matrix_store.h"
#include "wgmma.h"

namespace attn {

template <typename T, typename Tiles>
class BackwardKeys {
 public:
  using Block = BackwardBlock<Tiles>;
  using Turn = typename Block::Turn;

  __device__ __forceinline__ BackwardKeys(const Block& given, int group)
      : block(given), number(group), warp(static_cast<int>(threadIdx.x) / kWarp % (kWarpgroup / kWarp)) {
    dk.clear();
    dv.clear();
    wait_for_phase(block.kv_full(), 0);
  }

  // The tensor cores work off what a warpgroup starts in turn, 64 queries a step: dP, dV, dK, the scores of the next
  // step, and dQ after the last step of a tile. Exponentials are taken beside dP.
  __device__ __forceinline__ void visit_queries() {
    Visit at = block.first();
    if (at.head < block.end) {
      Scores scores;
      if constexpr (Tiles::kEarlyScores) start_scores<0>(scores);
      do {
        block.do_ring().wait_until_full(turn);
        take_step<0>(scores, at);
        if constexpr (kSteps > 1) take_step<1>(scores, at);
      } while (at.head < block.end);
    }
    wait_for_products<0>();
    pin(dk);
    pin(dv);
    finish();
  }

 private:
  using Kv = typename Block::Kv;
  using Rows = typename Block::Rows;
  using Ds = typename Block::Ds;
  static constexpr int kStep = kSlabColumns, kSteps = Tiles::kQueries / kStep;
  static constexpr int kDepth = Tiles::kColumns / kPiece, kStepDepth = kStep / kPiece;
  using Scores = Accumulator<1, kStep / kChunk>;
  using Factor = Held<1, kStepDepth>;
  using Dq = Accumulator<1, kSlabColumns / kChunk>;
  static constexpr int kColumnSlabs = Tiles::kColumns / kSlabColumns;
  static_assert(kSteps * kColumnSlabs == Tiles::kWarpgroups && kSteps <= 2);

  template <int step>
  __device__ __forceinline__ void take_step(Scores& scores, Visit& at) {
    constexpr bool kLast = step + 1 == kSteps;
    if constexpr (!Tiles::kEarlyScores) start_scores<step>(scores);
    Scores ds;
    begin_products();
    start_product<T, kDepth>(ds, AlongRows<Kv>::of(block.v(), number * kWarpgroupRows),
                             AlongRows<Rows>::of(block.dout(turn.stage), step * kStep), false);
    commit_products();
    wait_for_products<1>();
    pin(scores);
    weigh(scores, at, step);
    Factor weights;
    if constexpr (Tiles::kEarlyDv) {
      weights = Factor::template rounded<T>(scores);
      start_dv<step>(weights);
      wait_for_products<1>();
      pin(ds);
      differentiate(ds, scores, step);
    } else {
      wait_for_products<0>();
      pin(ds);
      differentiate(ds, scores, step);
      weights = Factor::template rounded<T>(scores);
      start_dv<step>(weights);
    }
    const auto rounded = Factor::template rounded<T>(ds);
    store_matrices<Ds>(rounded, block.ds(which) + step * Ds::kSlabBytes, number * kWarpgroupRows + warp * kPiece);
    publish_stores();
    if constexpr (!kLast) {
      begin_products();
      start_dk<step>(rounded);
      start_next_scores<step + 1>(scores);
      wait_for_products<Tiles::kEarlyScores ? 1 : 0>();
    } else {
      // All of dS is there. A warpgroup that goes on may write the other dS only: this barrier of the visit after it
      // waits for the products of the visit before.
      named_barrier(1, Tiles::kWarpgroups * kWarpgroup);
      Dq dq;
      begin_products();
      start_dq(dq);
      commit_products();
      start_dk<step>(rounded);
      const Visit done = at;
      const Turn done_turn = turn;
      block.advance(at);
      turn.advance();
      which ^= 1;
      if (Tiles::kEarlyScores) {
        if (at.head < block.end) start_scores<0>(scores);
        commit_products();
      }
      wait_for_products<Tiles::kEarlyScores ? 2 : 1>();
      pin(dq);
      block.do_ring().release(done_turn);
      pass_on(dq, done);
      wait_for_products<Tiles::kEarlyScores ? 1 : 0>();
      block.q_ring().release(done_turn);
    }
  }
  template <int step>
  __device__ __forceinline__ void start_next_scores(Scores& scores) {
    if constexpr (Tiles::kEarlyScores) start_scores<step>(scores);
  }

  template <int step>
  __device__ __forceinline__ void start_scores(Scores& scores) {
    if constexpr (step == 0) block.q_ring().wait_until_full(turn);
    begin_products();
    start_product<T, kDepth>(scores, AlongRows<Kv>::of(block.k(), number * kWarpgroupRows),
                             AlongRows<Rows>::of(block.q(turn.stage), step * kStep), false);
    commit_products();
  }
  template <int step>
  __device__ __forceinline__ void start_dv(const Factor& weights) {
    begin_products();
    start_product<T, kStepDepth>(dv, weights,
                                 AcrossRows<Rows>::of(block.dout(turn.stage) + step * kStep * kSlabRowBytes));
    commit_products();
  }
  template <int step>
  __device__ __forceinline__ void start_dk(const Factor& rounded) {
    start_product<T, kStepDepth>(dk, rounded,
                                 AcrossRows<Rows>::of(block.q(turn.stage) + step * kStep * kSlabRowBytes));
    commit_products();
  }
  __device__ __forceinline__ void start_dq(Dq& dq) {
    start_product<T, Tiles::kKeys / kPiece>(
        dq, AcrossRows<Ds>::of(block.ds(which) + number / kColumnSlabs * Ds::kSlabBytes),
        AcrossRows<Kv>::of(block.k() + number % kColumnSlabs * Kv::kSlabBytes), false);
  }

  // Columns are queries: a lane's own are the same in all of its rows.
  __device__ static uint32_t own_numbers(uint32_t numbers) { return numbers + threadIdx.x % 4 * 8; }

  __device__ __forceinline__ void weigh(Scores& scores, Visit at, int step) const {
    const HopperBackwardParams& p = block.p;
    if (!block.plain.has(at.tile)) {
      const int kv_len = static_cast<int>(p.shape.kv_len);
      hide_scores<true>(scores, TileMask::of(p.band, at.tile * Tiles::kQueries, block.k0, kv_len),
                        number * kWarpgroupRows + warp * kPiece, step * kStep);
    }
#pragma unroll
    for (int n = 0; n < Scores::kColumnTiles; ++n) {
      const float2 lse = load_shared_two_floats(own_numbers(block.lse(turn.stage)) + (step * kStep + n * kChunk) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = scores.at[0][n][i];
        x = fast_exp2(x * p.scale_log2 - (i % 2 == 0 ? lse.x : lse.y));
      }
    }
  }
  __device__ __forceinline__ void differentiate(Scores& ds, const Scores& weights, int step) const {
#pragma unroll
    for (int n = 0; n < Scores::kColumnTiles; ++n) {
      const float2 delta = load_shared_two_floats(own_numbers(block.delta(turn.stage)) + (step * kStep + n * kChunk) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = ds.at[0][n][i];
        x = weights.at[0][n][i] * (x - (i % 2 == 0 ? delta.x : delta.y));
      }
    }
  }

  // A warp's 16 queries and 64 columns of dQ are 4096 contiguous bytes of the sum, which lies as C fragments. A warp
  // needs nobody else to add them; in a fixed order it waits for those of the key tiles before, and tells those after.
  __device__ __forceinline__ void pass_on(const Dq& dq, Visit at) {
    static_assert(Block::kWarpDq == Dq::kColumnTiles * kWarp * 16);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const uint32_t place = block.dq(number * (kWarpgroup / kWarp) + warp);
    if (lane == 0) finish_addition();
    __syncwarp();
#pragma unroll
    for (int n = 0; n < Dq::kColumnTiles; ++n) {
      const float (&x)[4] = dq.at[0][n];
      store_shared(place + (n * kWarp + lane) * 16, uint4{__float_as_uint(x[0]), __float_as_uint(x[1]),
                                                          __float_as_uint(x[2]), __float_as_uint(x[3])});
    }
    publish_stores();
    __syncwarp();
    if (lane != 0) return;
    const HopperBackwardParams& p = block.p;
    if (p.added != nullptr) {
      const int q0 = at.tile * Tiles::kQueries, q1 = min(q0 + Tiles::kQueries, static_cast<int>(p.shape.q_len));
      const int before = block.key_tile - key_tiles(p.band, q0, q1, static_cast<int>(p.shape.kv_len), Tiles::kKeys).first;
      added = p.added + block.padded_row(at) / Tiles::kQueries;
      wait_until_told(added, before * Block::kWarps);
    }
    const int64_t piece = block.padded_row(at) / kPiece + number / kColumnSlabs * (kWarpgroupRows / kPiece) + warp;
    const int64_t fragment = piece * (Tiles::kColumns / kChunk) + number % kColumnSlabs * Dq::kColumnTiles;
    start_run_addition(p.dq_sum + fragment * (kWarp * 4), place, Block::kWarpDq);
  }
  // By the lane that starts additions, before the next and after the last.
  __device__ __forceinline__ void finish_addition() {
    if (added == nullptr) return wait_for_additions_to_read();
    wait_for_additions();
    tell(added);
    added = nullptr;
  }

  // Write dK and dV by way of the places of K and V.
  __device__ __forceinline__ void finish() {
    const HopperBackwardParams& p = block.p;
    const int row = number * kWarpgroupRows + warp * kPiece;
    const bool starts = threadIdx.x % kWarp == 0;
    if (starts) finish_addition();
    named_barrier(1, Tiles::kWarpgroups * kWarpgroup);  // all are done with K
    const float one[1][2] = {{1.0f, 1.0f}}, scale[1][2] = {{p.scale, p.scale}};
    store_rounded<T, Kv>(dv, one, block.v(), row);
    store_rounded<T, Kv>(dk, scale, block.k(), row);
    publish_stores();
    __syncwarp();
    if (!starts || block.k0 + row >= block.k1) return;
#pragma unroll
    for (int slab = 0; slab < Kv::kCount; ++slab) {
      if (slab * kSlabColumns >= p.shape.head_dim) break;
      const BoxAt box{slab * kSlabColumns, block.k0 + row, block.kv_head, block.batch};
      const int inside = slab * Kv::kSlabBytes + row * kSlabRowBytes;
      start_store(p.dv, box, block.v() + inside);
      start_store(p.dk, box, block.k() + inside);
    }
    wait_for_stores_to_read();
  }

  const Block& block;
  const int number, warp;  // of the warpgroup, and of the warp in it
  Accumulator<1, Tiles::kColumns / kChunk> dk, dv;
  Turn turn;
  int which = 0;         // of the two dS
  int* added = nullptr;  // the count that waits to be told of the last addition
};

}  // namespace attn

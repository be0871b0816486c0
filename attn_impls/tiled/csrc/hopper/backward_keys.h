// The 64 keys of a warpgroup: their dK and dV, summed up in registers, and their share of dQ.
//
// Scores are computed transposed, K Q^T, and so are the gradients of the weights, V dO^T: rows are the warpgroup's own
// keys. Rounded in place they are the A of dV += P^T dO and dK += dS^T Q. Only dQ = dS K sums over the keys of all
// warpgroups: dS^T goes to shared memory, of which wgmma takes the transpose, and each warpgroup computes half of dQ,
// 64 queries or 64 columns.
#pragma once

#include "backward_block.h"
#include "held_rows.h"
#include "wgmma.h"
#include "write_rows.h"

namespace attn {

template <typename T, typename Tiles>
class BackwardKeys {
 public:
  using Block = BackwardBlock<T, Tiles>;
  using Turn = typename Block::Turn;

  __device__ __forceinline__ BackwardKeys(Block& given, int group)
      : block(given), number(group), warp(static_cast<int>(threadIdx.x) / kWarp % (kWarpgroup / kWarp)) {}

  // All keys that the block takes up. The copies of the next are under way while dK and dV are written, and the other
  // warpgroup may be at work on them.
  __device__ __forceinline__ void compute() {
    for (uint32_t parity = 0; block.next_keys(parity);) {
      begin();
      visit_queries();
      parity = block.release_keys();
      end_additions();
      write();
    }
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
  static_assert(Tiles::kStages == 2, "a dS for each stage, and both in turn");

  __device__ __forceinline__ void begin() {
    dk.clear();
    dv.clear();
    keys = own_rows(block.k());
    values = own_rows(block.v());
  }

  // The tensor cores work off what a warpgroup starts, in turn. Exponentials are taken beside dP, dS is computed beside
  // dV, and dQ is passed on beside dK and, where the registers suffice, beside the scores of the next tile. Nothing is
  // under way where a loop turns, because ptxas follows no product around it.
  __device__ __forceinline__ void visit_queries() {
    Visit at = block.first();
    Scores scores;
    Factor weights, rounded;
    if constexpr (!Tiles::kRegistersToSpare) {
      for (; at.head < block.end; block.advance(at)) {
        turn.stage = one_for_warp(turn.stage);
        start_tile(scores);
        take_tile(scores, weights, rounded, at);
        finish_tile<false>(scores, rounded, at);
      }
    } else if (at.head < block.end) {
      start_tile(scores);
      take_tile(scores, weights, rounded, at);
      while (true) {
        const Visit before = at;
        block.advance(at);
        if (at.head >= block.end) {
          finish_tile<false>(scores, rounded, before);
          break;
        }
        finish_tile<true>(scores, rounded, before);
        take_tile(scores, weights, rounded, at);
      }
    }
  }

  __device__ __forceinline__ void start_tile(Scores& scores) {
    block.q_ring().wait_until_full(turn);
    begin_products();
    start_scores<0>(scores);
  }
  // From scores under way to dV, and dS in shared memory.
  __device__ __forceinline__ void take_tile(Scores& scores, Factor& weights, Factor& rounded, Visit at) {
    block.do_ring().wait_until_full(turn);
    take_step<0>(scores, weights, rounded, at);
    if constexpr (kSteps > 1) {
      Factor first = rounded;
      begin_products();
      start_dk<0>(first, turn);
      start_scores<1>(scores);
      if (block.p.added != nullptr) end_additions();  // whoever waits for them is one visit behind under a causal mask
      take_step<1>(scores, weights, rounded, at);
    }
    if constexpr (Tiles::kRegistersToSpare) {  // otherwise dV may take until dQ is waited for
      wait_for_products<0>();
      block.do_ring().release_after_loads(turn);
    }
    // All of dS is there. A warpgroup that goes on writes the other dS in the next visit; in the one after that it has
    // passed this barrier again, before which the other warpgroup waited for its products with this dS.
    named_barrier<1>(Tiles::kWarpgroups * kWarpgroup);
  }
  template <int step>
  __device__ __forceinline__ void take_step(Scores& scores, Factor& weights, Factor& rounded, Visit at) {
    Scores ds;
    begin_products();
    start_product<T, kDepth>(ds, values, AlongRows<Rows>::of(block.dout(turn.stage), step * kStep), false);
    commit_products();
    wait_for_products<1>();
    pin(scores);
    weigh(scores, at, step);
    weights = Factor::template rounded<T>(scores);
    begin_products();
    start_product<T, kStepDepth>(dv, weights,
                                 AcrossRows<Rows>::of(block.dout(turn.stage) + step * kStep * kSlabRowBytes));
    commit_products();
    wait_for_products<1>();
    pin(ds);
    differentiate(ds, scores, step);
    rounded = Factor::template rounded<T>(ds);
    store_rows<Ds>(rounded, block.ds(turn.stage) + step * Ds::kSlabBytes, number * kWarpgroupRows + warp * kPiece);
    publish_stores();
  }

  // dQ and the rest of dK, and the scores of the next tile on their way.
  template <bool more>
  __device__ __forceinline__ void finish_tile(Scores& scores, const Factor& rounded, Visit at) {
    const Turn done = turn;
    turn.advance();
    if constexpr (more) block.q_ring().wait_until_full(turn);
    Dq dq;
    begin_products();
    start_product<T, Tiles::kKeys / kPiece>(
        dq, AcrossRows<Ds>::of(block.ds(done.stage) + number / kColumnSlabs * Ds::kSlabBytes),
        AcrossRows<Kv>::of(block.k() + number % kColumnSlabs * Kv::kSlabBytes), false);
    commit_products();
    start_dk<kSteps - 1>(rounded, done);
    if constexpr (more) start_scores<0>(scores);
    wait_for_products<more ? 2 : 1>();
    pin(dq);
    if constexpr (!Tiles::kRegistersToSpare) block.do_ring().release_after_loads(done);
    pass_on(dq, at);
    wait_for_products<more ? 1 : 0>();
    block.q_ring().release_after_loads(done);
  }

  template <int step>
  __device__ __forceinline__ void start_scores(Scores& scores) {
    start_product<T, kDepth>(scores, keys, AlongRows<Rows>::of(block.q(turn.stage), step * kStep), false);
    commit_products();
  }
  template <int step>
  __device__ __forceinline__ void start_dk(const Factor& rounded, Turn of) {
    start_product<T, kStepDepth>(dk, rounded, AcrossRows<Rows>::of(block.q(of.stage) + step * kStep * kSlabRowBytes));
    commit_products();
  }

  // Columns are queries: a lane's own are the same in all of its rows.
  __device__ static uint32_t own_numbers(uint32_t numbers) { return numbers + threadIdx.x % 4 * 8; }

  __device__ __forceinline__ void weigh(Scores& scores, Visit at, int step) const {
    const HopperBackwardParams<T>& p = block.p;
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
      const float2 delta =
          load_shared_two_floats(own_numbers(block.delta(turn.stage)) + (step * kStep + n * kChunk) * 4);
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
    const int lane = thread_read_anew() % kWarp;  // rather than held from visit to visit
    const uint32_t place = block.dq(own_warp());
    if (lane == 0) finish_addition();
    __syncwarp();
#pragma unroll
    for (int n = 0; n < Dq::kColumnTiles; ++n) {
      const float (&x)[4] = dq.at[0][n];
      store_shared(place + (n * kWarp + lane) * 16,
                   uint4{__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])});
    }
    publish_stores();
    __syncwarp();
    if (lane == 0) start_addition(place, at);
    __syncwarp();  // what follows is for whole warps
  }
  // By one lane, as are the next.
  __device__ __forceinline__ void start_addition(uint32_t place, Visit at) {
    const HopperBackwardParams<T>& p = block.p;
    if (p.added != nullptr) {
      const int q0 = at.tile * Tiles::kQueries, q1 = min(q0 + Tiles::kQueries, static_cast<int>(p.shape.q_len));
      untold = block.padded_row(at) / Tiles::kQueries;
      wait_until_told(p.added + untold, block.adds_before(q0, q1) * Block::kWarps);
    }
    constexpr int kWarps = kWarpgroup / kWarp;
    const int mine = own_warp(), group = mine / kWarps;
    const int piece = block.padded_row(at) / kPiece + group / kColumnSlabs * kWarps + mine % kWarps;
    const int64_t fragment =
        static_cast<int64_t>(piece) * (Tiles::kColumns / kChunk) + group % kColumnSlabs * Dq::kColumnTiles;
    start_run_addition(p.dq_sum + fragment * (kWarp * 4), place, Block::kWarpDq);
  }
  // Before the next and after the last.
  __device__ __forceinline__ void finish_addition() {
    if (untold < 0) return wait_for_additions_to_read();
    wait_for_additions();
    tell(block.p.added + untold);
    untold = -1;
  }

  // Of all warps that compute, found anew each time rather than held.
  __device__ static int own_warp() { return thread_read_anew() / kWarp - kWarpgroup / kWarp; }

  // By all lanes: after the last tile of queries, and where somebody may wait for it.
  __device__ __forceinline__ void end_additions() {
    if (threadIdx.x % kWarp == 0) finish_addition();
    __syncwarp();
  }

  // Write dK and dV straight from the registers: the next keys are on their way to the places of K and V.
  __device__ __forceinline__ void write() const {
    const HopperBackwardParams<T>& p = block.p;
    const int row = block.k0 + own_warp() * kPiece;
    const int head_dim = static_cast<int>(p.shape.head_dim);
    const float one[1][2] = {{1.0f, 1.0f}}, scale[1][2] = {{p.scale, p.scale}};
    write_rows(dv, one, p.dv, block.batch, block.kv_head, row, block.k1, head_dim);
    write_rows(dk, scale, p.dk, block.batch, block.kv_head, row, block.k1, head_dim);
  }
  // The warpgroup's K or V as a left factor.
  __device__ __forceinline__ auto own_rows(uint32_t tile) const {
    if constexpr (Tiles::kRegistersToSpare)
      return load_rows<Kv, kDepth>(tile, number * kWarpgroupRows + warp * kPiece);
    else
      return AlongRows<Kv>::of(tile, number * kWarpgroupRows);
  }
  using Own = std::conditional_t<Tiles::kRegistersToSpare, Held<1, kDepth>, AlongRows<Kv>>;

  Block& block;
  const int number, warp;  // of the warpgroup, and of the warp in it
  Own keys, values;
  Accumulator<1, Tiles::kColumns / kChunk> dk, dv;
  Turn turn;
  int untold = -1;  // the number of the count that is to be told of the last addition
};

}  // namespace attn

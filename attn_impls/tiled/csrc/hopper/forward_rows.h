// The 64 queries of a warpgroup, and two ways to compute their attention tile by tile.
//
// Of the tiles that the block visits, the first and the last may be seen by other warpgroups only. They are waited for
// all the same, because the ring's count needs every reader, and released.
#pragma once

#include "forward_block.h"

namespace attn {

template <typename T, typename Tiles>
class ForwardRows {
 public:
  using Block = ForwardBlock<Tiles>;
  using Turn = typename Block::Turn;

  __device__ __forceinline__ ForwardRows(const Block& given, int group)
      : block(given),
        number(group),
        row(group * kWarpgroupRows + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * kPiece),
        q_rows(AlongRows<Q>::of(given.q(), group * kWarpgroupRows)),
        tile(given.tiles.last - 1) {
    const int q0 = block.mine.q0 + group * kWarpgroupRows, q1 = min(q0 + kWarpgroupRows, block.mine.q1);
    seen = key_tiles(block.p.band, q0, q1, block.kv_len(), Tiles::kKeys);
    if (q0 >= q1 || seen.first >= seen.last) seen = {block.tiles.first, block.tiles.first};
    plain = plain_key_tiles(block.p.band, q0, q1, block.kv_len(), Tiles::kKeys);
    softmax.clear();
    out.clear();
    wait_for_phase(block.q_full(), 0);
  }

  // One thing after the other. between(tile) is called while the scores of a tile are computed.
  template <typename Between>
  __device__ __forceinline__ void attend_in_turn(const Between& between) {
    pass_down_to(max(seen.last, block.tiles.first), between);
    for (; tile >= seen.first; --tile, turn.advance()) {
      Scores scores;
      block.k_ring().wait_until_full(turn);
      start_scores(scores);
      between(tile);
      wait_for_products<0>();
      pin(scores);
      block.k_ring().release(turn);

      hide(scores);
      softmax.take(scores, out, block.p.scale_log2);
      const Weights weights = Weights::template rounded<T>(scores);

      block.v_ring().wait_until_full(turn);
      start_output(weights, turn);
      wait_for_products<0>();
      pin(out);
      block.v_ring().release(turn);
    }
    pass_down_to(block.tiles.first, between);
    block.template finish<T>(number, row, softmax, out);
  }

  // The softmax of a tile while the tensor cores multiply the weights of the tile before by its values: their product
  // is started after that of the next scores and may take until the next weights are ready. Only then may the registers
  // of the output and of the weights be touched.
  __device__ __forceinline__ void attend_overlapped() {
    const auto nothing = [](int) {};
    pass_down_to(max(seen.last, block.tiles.first), nothing);
    if (tile >= seen.first) {
      Weights weights;
      {
        Scores scores;
        block.k_ring().wait_until_full(turn);
        start_scores(scores);
        wait_for_products<0>();
        pin(scores);
        block.k_ring().release(turn);
        hide(scores);
        softmax.take(scores, out, block.p.scale_log2);
        weights = Weights::template rounded<T>(scores);
        block.v_ring().wait_until_full(turn);
      }
      Turn before = turn;
      turn.advance();
      for (--tile; tile >= seen.first; --tile) {
        Scores scores;
        block.k_ring().wait_until_full(turn);
        start_scores(scores);
        start_output(weights, before);
        wait_for_products<1>();
        pin(scores);
        block.k_ring().release(turn);

        hide(scores);
        float factor[1][2];
        const bool outgrown = softmax.follow_apart(scores, factor, block.p.scale_log2);
        softmax.weigh(scores, block.p.scale_log2);
        pin(scores);
        // The values of these weights. Waiting for them here is early enough for their product, and a loop, which the
        // compiler does not move the exponentials across: in one block it puts them off until after the next wait.
        block.v_ring().wait_until_full(turn);
        wait_for_products<0>();
        pin(out);
        block.v_ring().release(before);
        if (outgrown) softmax.rescale(out, factor);
        weights = Weights::template rounded<T>(scores);
        before = turn;
        turn.advance();
      }
      start_output(weights, before);
      wait_for_products<0>();
      pin(out);
      block.v_ring().release(before);
    }
    pass_down_to(block.tiles.first, nothing);
    block.template finish<T>(number, row, softmax, out);
  }

 private:
  using Q = typename Block::Q;
  using Kv = typename Block::Kv;
  using Scores = Accumulator<1, Tiles::kKeys / kChunk>;
  using Weights = Held<1, Tiles::kKeys / kPiece>;

  template <typename Between>
  __device__ __forceinline__ void pass_down_to(int end, const Between& between) {
    for (; tile >= end; --tile, turn.advance()) {
      block.k_ring().wait_until_full(turn);
      __syncwarp();  // no product keeps the warp together here; a lane that falls behind would miss the phase's end
      block.k_ring().release(turn);
      between(tile);
      block.v_ring().wait_until_full(turn);
      __syncwarp();
      block.v_ring().release(turn);
    }
  }
  __device__ __forceinline__ void start_scores(Scores& scores) {
    begin_products();
    start_product<T, Tiles::kColumns / kPiece>(scores, q_rows, AlongRows<Kv>::of(block.k(turn.stage)), false);
    commit_products();
  }
  __device__ __forceinline__ void start_output(const Weights& weights, Turn of) {
    pin(out);
    begin_products();
    start_product<T, Tiles::kKeys / kPiece>(out, weights, AcrossRows<Kv>::of(block.v(of.stage)));
    commit_products();
  }
  __device__ __forceinline__ void hide(Scores& scores) const {
    if (plain.has(tile)) return;
    hide_scores(scores, TileMask::of(block.p.band, block.mine.q0, tile * Tiles::kKeys, block.kv_len()), row, 0);
  }

  const Block& block;
  const int number, row;  // of the warpgroup, and of its warp's first query in the block
  const AlongRows<Q> q_rows;
  TileRange seen, plain;
  FragmentSoftmax<1> softmax;
  Accumulator<1, Tiles::kColumns / kChunk> out;
  int tile;
  Turn turn;
};

}  // namespace attn

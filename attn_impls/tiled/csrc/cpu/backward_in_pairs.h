// The gradients of bf16 tensors by products of pairs, at twice the rate of fp32 (AVX512-BF16).
//
// Every product has bf16 factors and an fp32 sum. Q, K, V and dO are bf16 as they come; the weights P and the gradient
// of the scores dS are rounded to bf16, as PyTorch and FlashAttention-2 round them. S and dP of a block stay in
// registers until P and dS leave them, so no fp32 tile is ever stored.
//
// On one core of an AMD EPYC (Zen 4) that reaches 231 GFLOP/s by vdpbf16ps and 116 by fp32 FMA, length 2048, head dim
// 64 and no mask: 116 GFLOP/s before, with S and dP in pairs and the rest in fp32, and 197 now. The kernels alone reach
// 212; exp and rounding take the difference to 231.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backward.h"
#include "matmul.h"
#include "pair_scores.h"
#include "pair_tiles.h"
#include "workspace.h"

namespace attn {

class PairTile;

#if defined(__AVX512BF16__)
class PairTile {
 public:
  static constexpr int64_t kQueries = 128;

  PairTile(const Backward<BFloat16>& problem, float* share) : problem_(problem), width_(problem.width()) {
    const int64_t packed = (width_ + kStrip - 1) / kStrip * kStrip / 2;
    Cutter cutter(share);
    dq_ = cutter.take(kQueries * width_);
    for (float** tile : {&q_transposed_, &dout_transposed_}) *tile = cutter.take(kQueries * width_ / 2);
    for (float** tile : {&q_, &dout_}) *tile = cutter.take(kQueries * packed);
    for (float** tile : {&keys_, &left_keys_, &left_values_}) *tile = cutter.take(kKeys * packed);
    for (float** tile : {&weights_, &dscores_}) *tile = cutter.take(kKeys * kQueries / 2);
    dscore_pairs_ = cutter.take(kKeys / 2 * kPairStride);
    for (float** tile : {&lse_, &delta_}) *tile = cutter.take(kQueries);
  }

  static int64_t floats(int64_t width) {
    const int64_t packed = (width + kStrip - 1) / kStrip * kStrip / 2;
    return 2 * kQueries * width + 2 * kQueries * packed + 3 * kKeys * packed + kKeys * kQueries +
           kKeys / 2 * kPairStride + 2 * kQueries;
  }

  // Everything that the queries [q0, q1) of one head contribute.
  void run(int64_t batch, int64_t head, int64_t q0, int64_t q1, Sums sums) const {
    const Shape& shape = problem_.shape;
    const Band band = problem_.band;
    const int64_t head_dim = shape.head_dim, depth = (head_dim + 1) / 2, kv_head = head / shape.group();
    const int64_t queries = q1 - q0, query_pairs = (queries + 1) / 2;
    const int64_t tile_width = (queries + kScoreColumns - 1) / kScoreColumns * kScoreColumns;
    for (const auto& view : {problem_.dout, problem_.out, problem_.q, problem_.dq}) {
      prefetch_rows(view, batch, head, q0, q1, head_dim);
    }
    problem_.load_statistics(batch, head, q0, queries, tile_width, lse_, delta_, [&](int64_t i) {
      return dot_of_pairs(problem_.dout.row(batch, head, q0 + i), problem_.out.row(batch, head, q0 + i), head_dim);
    });
    pack_columns(problem_.q, batch, head, q0, q1, head_dim, q_transposed_);
    pack_columns(problem_.dout, batch, head, q0, q1, head_dim, dout_transposed_);
    pack_rows(problem_.q, batch, head, q0, q1, head_dim, q_);
    pack_rows(problem_.dout, batch, head, q0, q1, head_dim, dout_);
    std::fill(dq_, dq_ + queries * width_, 0.0f);

    for (int64_t k0 = 0; k0 < shape.kv_len; k0 += kKeys) {
      const int64_t k1 = std::min(k0 + kKeys, shape.kv_len), keys = k1 - k0, key_pairs = (keys + 1) / 2;
      if (band.hides_tile(q0, q1, k0, k1)) continue;
      // Diagonals of the tile: query minus key for sums over queries, and the reverse.
      const Band of_queries{k0 - q0 - band.high, k0 - q0 - band.low}, of_keys{q0 - k0 + band.low, q0 - k0 + band.high};
      for (const auto& view : {problem_.k, problem_.v}) prefetch_rows(view, batch, kv_head, k0, k1, head_dim);
      pack_rows(problem_.k, batch, kv_head, k0, k1, head_dim, keys_);
      const ScoreTile scores{pairs_of_rows(problem_.k, batch, kv_head, k0, k1, head_dim, left_keys_),
                             pairs_of_rows(problem_.v, batch, kv_head, k0, k1, head_dim, left_values_),
                             q_transposed_,
                             dout_transposed_,
                             lse_,
                             delta_,
                             depth,
                             problem_.scale,
                             of_queries,
                             weights_,
                             dscores_,
                             dscore_pairs_,
                             tile_width,
                             kPairStride};
      scores.run(keys);
      add_pairs(keys, width_, query_pairs, {weights_, tile_width / 2, 1}, of_queries, dout_, sums.dv + k0 * width_,
                width_);
      add_pairs(keys, width_, query_pairs, {dscores_, tile_width / 2, 1}, of_queries, q_, sums.dk + k0 * width_,
                width_);
      add_pairs(queries, width_, key_pairs, {dscore_pairs_, 1, kPairStride}, of_keys, keys_, dq_, width_);
    }
    for (int64_t i = 0; i < queries; ++i) {
      narrow(dq_ + i * width_, problem_.scale, head_dim, problem_.dq.row(batch, head, q0 + i));
    }
  }

 private:
  static constexpr int64_t kKeys = 128;
  // Rows of pairs of dS are read down their columns; a cache line more than a power of two keeps them in different
  // sets of the L1 cache.
  static constexpr int64_t kPairStride = kQueries + 16;

  const Backward<BFloat16>& problem_;
  int64_t width_;
  float *dq_, *q_transposed_, *dout_transposed_, *q_, *dout_, *keys_, *left_keys_, *left_values_, *weights_, *dscores_,
      *dscore_pairs_, *lse_, *delta_;
};

#endif

}  // namespace attn

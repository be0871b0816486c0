// The gradients by fp32 products: of every dtype, on every CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backward.h"
#include "matmul.h"
#include "workspace.h"

namespace attn {

// The sum of the products of whole vectors.
inline float dot(const float* a, const float* b, int64_t width) {
  Vec sums{};
  for (int64_t d = 0; d < width; d += kLanes) sums += load(a + d) * load(b + d);
  float sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

template <typename T>
class FloatTile {
 public:
  static constexpr int64_t kQueries = 64;

  FloatTile(const Backward<T>& problem, float* share) : problem_(problem), width_(problem.width()) {
    Cutter cutter(share);
    for (float** tile : {&q_, &dout_, &out_, &q_transposed_, &dout_transposed_, &dq_}) {
      *tile = cutter.take(kQueries * width_);
    }
    for (float** tile : {&keys_, &values_}) *tile = cutter.take(kKeys * width_);
    for (float** tile : {&weights_, &dscores_}) *tile = cutter.take(kKeys * kQueries);
    for (float** tile : {&lse_, &delta_}) *tile = cutter.take(kQueries);
  }

  static int64_t floats(int64_t width) {
    return 6 * kQueries * width + 2 * kKeys * width + 2 * kKeys * kQueries + 2 * kQueries;
  }

  // Everything that the queries [q0, q1) of one head contribute.
  void run(int64_t batch, int64_t head, int64_t q0, int64_t q1, Sums sums) const {
    const Shape& shape = problem_.shape;
    const int64_t head_dim = shape.head_dim, kv_head = head / shape.group();
    const int64_t queries = q1 - q0, tile_width = round_up_to_lanes(queries);
    const Rows q_rows = widen_rows(problem_.q, batch, head, q0, q1, head_dim, q_);
    const Rows dout_rows = widen_rows(problem_.dout, batch, head, q0, q1, head_dim, dout_);
    const Rows out_rows = widen_rows(problem_.out, batch, head, q0, q1, head_dim, out_);
    problem_.load_statistics(batch, head, q0, queries, tile_width, lse_, delta_, [&](int64_t i) {
      return dot(dout_rows.data + i * dout_rows.stride, out_rows.data + i * out_rows.stride, width_);
    });
    transpose(q_rows, queries, head_dim, q_transposed_, tile_width);
    transpose(dout_rows, queries, head_dim, dout_transposed_, tile_width);
    std::fill(dq_, dq_ + queries * width_, 0.0f);

    for (int64_t k0 = 0; k0 < shape.kv_len; k0 += kKeys) {
      const int64_t k1 = std::min(k0 + kKeys, shape.kv_len), keys = k1 - k0;
      if (problem_.band.hides_tile(q0, q1, k0, k1)) continue;
      const Rows key_rows = widen_rows(problem_.k, batch, kv_head, k0, k1, head_dim, keys_);
      const Rows value_rows = widen_rows(problem_.v, batch, kv_head, k0, k1, head_dim, values_);
      const Factor weights{weights_, tile_width, 1}, dscores{dscores_, tile_width, 1};
      const Factor dscores_transposed{dscores_, 1, tile_width};

      matmul(Into::kSet, keys, tile_width, head_dim, {key_rows.data, key_rows.stride, 1}, q_transposed_, tile_width,
             weights_, tile_width);
      if (!problem_.band.shows_tile(q0, q1, k0, k1)) {
        mask_scores(problem_.band, q0, k0, keys, queries, weights_, tile_width);
      }
      matmul(Into::kSet, keys, tile_width, head_dim, {value_rows.data, value_rows.stride, 1}, dout_transposed_,
             tile_width, dscores_, tile_width);
      differentiate(keys, tile_width);
      matmul(Into::kAdd, keys, width_, queries, weights, dout_rows.data, dout_rows.stride, sums.dv + k0 * width_,
             width_);
      matmul(Into::kAdd, keys, width_, queries, dscores, q_rows.data, q_rows.stride, sums.dk + k0 * width_, width_);
      matmul(Into::kAdd, queries, width_, keys, dscores_transposed, key_rows.data, key_rows.stride, dq_, width_);
    }
    for (int64_t i = 0; i < queries; ++i) {
      narrow(dq_ + i * width_, problem_.scale, head_dim, problem_.dq.row(batch, head, q0 + i));
    }
  }

 private:
  static constexpr int64_t kKeys = 64;

  // scores -> weights P = exp(scale * scores - lse), and dP -> dS = P * (dP - delta), over [keys, tile_width].
  void differentiate(int64_t keys, int64_t tile_width) const {
    for (int64_t i = 0; i < tile_width; i += kLanes) {
      const Vec lse = load(lse_ + i), delta = load(delta_ + i);
      for (int64_t j = 0; j < keys; ++j) {
        const int64_t at = j * tile_width + i;
        const Vec weight = exp(load(weights_ + at) * problem_.scale - lse);
        store(weights_ + at, weight);
        store(dscores_ + at, weight * (load(dscores_ + at) - delta));
      }
    }
  }

  const Backward<T>& problem_;
  int64_t width_;
  float *q_, *dout_, *out_, *q_transposed_, *dout_transposed_, *dq_, *keys_, *values_, *weights_, *dscores_, *lse_,
      *delta_;
};

}  // namespace attn

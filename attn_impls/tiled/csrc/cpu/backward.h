// What both ways of computing the gradients share: the tensors, the sums, and what a query brings along.
#pragma once

#include <cstdint>
#include <limits>

#include "../band.h"
#include "tile_io.h"
#include "vector.h"

namespace attn {

// fp32 sums of dK and dV over the queries of one task, [kv_len, width] each.
struct Sums {
  float *dk, *dv;
};

template <typename T>
struct Backward {
  Shape shape;
  View<T> dout, q, k, v, out, dq, dk, dv;
  const float *lse, *dlse;
  float scale;
  Band band;

  int64_t width() const { return round_up_to_lanes(shape.head_dim); }

  // lse, and delta = rowsum(dO * O) - dlse, for `queries` queries from q0 on, and for columns behind them up to
  // tile_width. dot(i) is the row sum of query q0 + i.
  template <typename Dot>
  void load_statistics(int64_t batch, int64_t head, int64_t q0, int64_t queries, int64_t tile_width, float* tile_lse,
                       float* tile_delta, const Dot& dot) const {
    const int64_t first = (batch * shape.heads + head) * shape.q_len + q0;
    for (int64_t i = 0; i < tile_width; ++i) {
      const float value = i < queries ? lse[first + i] : kMinusInfinity;
      // A query without keys, like a column beyond the last query, gets weights exp(score - inf) = 0.
      tile_lse[i] = value == kMinusInfinity ? std::numeric_limits<float>::infinity() : value;
      tile_delta[i] = i < queries ? dot(i) - (dlse == nullptr ? 0.0f : dlse[first + i]) : 0.0f;
    }
  }

  void store_sums(int64_t batch, int64_t kv_head, Sums sums) const {
    for (int64_t j = 0; j < shape.kv_len; ++j) {
      narrow(sums.dk + j * width(), scale, shape.head_dim, dk.row(batch, kv_head, j));
      narrow(sums.dv + j * width(), 1.0f, shape.head_dim, dv.row(batch, kv_head, j));
    }
  }
};

}  // namespace attn

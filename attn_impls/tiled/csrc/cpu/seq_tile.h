// What both directions of tiled-seq do with a tile: load it as fp32, score it, store a row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../arguments.h"

namespace attn {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kSeqTile = 32;  // queries and keys a tile; four tiles of 32 x 64 floats fit the L1 cache

// Call body(batch, head, q0, q1) for every tile of queries [q0, q1), in order.
template <typename Body>
void for_each_query_tile(const Shape& shape, const Body& body) {
  for (int64_t batch = 0; batch < shape.batch; ++batch) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      for (int64_t q0 = 0; q0 < shape.q_len; q0 += kSeqTile) {
        body(batch, head, q0, std::min(q0 + kSeqTile, shape.q_len));
      }
    }
  }
}

template <typename T>
void load_tile(View<T> from, int64_t batch, int64_t head, int64_t begin, int64_t end, int64_t head_dim, float* tile) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = from.row(batch, head, i);
    for (int64_t d = 0; d < head_dim; ++d) *tile++ = static_cast<float>(row[d]);
  }
}

// scores[i, j] = scale * sum over d of a[i, d] * b[j, d]; rows of scores are kSeqTile apart.
inline void score_tile(const float* a, const float* b, int64_t rows, int64_t columns, int64_t head_dim, float scale,
                       float* scores) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      float dot = 0;
      for (int64_t d = 0; d < head_dim; ++d) dot += a[i * head_dim + d] * b[j * head_dim + d];
      scores[i * kSeqTile + j] = scale * dot;
    }
  }
}

// out[r, d] += sum over c of weights[r, c] * factor[c, d], where weights[r, c] lies at r * row + c * column, so that a
// tile can be used transposed. The tile's sum is made in `sum` first: adding few large sums keeps more digits than
// adding every small product to a large one.
inline void add_product(const float* weights, int64_t row, int64_t column, int64_t rows, int64_t columns,
                        const float* factor, int64_t head_dim, float* sum, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    std::fill(sum, sum + head_dim, 0.0f);
    for (int64_t c = 0; c < columns; ++c) {
      const float weight = weights[r * row + c * column];
      for (int64_t d = 0; d < head_dim; ++d) sum[d] += weight * factor[c * head_dim + d];
    }
    for (int64_t d = 0; d < head_dim; ++d) out[r * head_dim + d] += sum[d];
  }
}

template <typename T>
void store_row(const float* row, float factor, int64_t head_dim, T* to) {
  for (int64_t d = 0; d < head_dim; ++d) to[d] = static_cast<T>(row[d] * factor);
}

}  // namespace attn

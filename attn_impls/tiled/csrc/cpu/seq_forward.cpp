// tiled-seq, forward: Algorithm 1 of FlashAttention-2 (Dao 2023, arXiv:2307.08691), one thread, scalar code.
//
// The plain baseline that the parallel kernel beside it, and the CUDA ladder, are compared with. Nothing is done for
// speed except what the algorithm itself does: a tile of queries stays while tiles of keys and values pass by, and
// the score matrix never exists as a whole.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "../band.h"
#include "seq_tile.h"
#include "workspace.h"

namespace attn {
namespace {

// One tile of queries against every tile of keys that it sees.
struct QueryTile {
  int64_t rows;
  float* q;        // [rows, D]
  float* out;      // [rows, D], not yet divided by the sum
  float* maximum;  // [rows], of the scores so far
  float* sum;      // [rows], of exp(score - maximum) so far
};

// Fold one tile of scores [rows, columns] and its values [columns, D] into the running result.
void online_softmax(const QueryTile& tile, float* scores, const float* values, int64_t columns, int64_t head_dim) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* row = scores + i * kSeqTile;
    const float maximum = std::max(tile.maximum[i], *std::max_element(row, row + columns));
    // While no key of a row was visible its maximum is -inf; 0 in its place makes every weight exp(-inf) = 0.
    const float shift = maximum == kMinusInfinity ? 0.0f : maximum;
    const float rescale = std::exp(tile.maximum[i] - shift);
    float* out = tile.out + i * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) out[d] *= rescale;
    float sum = 0;
    for (int64_t j = 0; j < columns; ++j) {
      const float weight = std::exp(row[j] - shift);
      sum += weight;
      for (int64_t d = 0; d < head_dim; ++d) out[d] += weight * values[j * head_dim + d];
    }
    tile.sum[i] = tile.sum[i] * rescale + sum;
    tile.maximum[i] = maximum;
  }
}

template <typename T>
void forward(const Shape& shape, View<T> q, View<T> k, View<T> v, float scale, Band band, View<T> out, float* lse,
             Cutter scratch) {
  const int64_t head_dim = shape.head_dim;
  QueryTile tile{};
  tile.q = scratch.take(kSeqTile * head_dim);
  tile.out = scratch.take(kSeqTile * head_dim);
  tile.maximum = scratch.take(kSeqTile);
  tile.sum = scratch.take(kSeqTile);
  float* keys = scratch.take(kSeqTile * head_dim);
  float* values = scratch.take(kSeqTile * head_dim);
  float* scores = scratch.take(kSeqTile * kSeqTile);

  for_each_query_tile(shape, [&](int64_t batch, int64_t head, int64_t q0, int64_t q1) {
    const int64_t kv_head = head / shape.group();
    tile.rows = q1 - q0;
    load_tile(q, batch, head, q0, q1, head_dim, tile.q);
    std::fill(tile.out, tile.out + tile.rows * head_dim, 0.0f);
    std::fill(tile.maximum, tile.maximum + tile.rows, kMinusInfinity);
    std::fill(tile.sum, tile.sum + tile.rows, 0.0f);

    for (int64_t k0 = 0; k0 < shape.kv_len; k0 += kSeqTile) {
      const int64_t k1 = std::min(k0 + kSeqTile, shape.kv_len);
      if (band.hides_tile(q0, q1, k0, k1)) continue;
      load_tile(k, batch, kv_head, k0, k1, head_dim, keys);
      load_tile(v, batch, kv_head, k0, k1, head_dim, values);
      score_tile(tile.q, keys, tile.rows, k1 - k0, head_dim, scale, scores);
      for (int64_t i = q0; i < q1; ++i) {
        for (int64_t j = k0; j < k1; ++j) {
          if (!band.sees(i, j)) scores[(i - q0) * kSeqTile + j - k0] = kMinusInfinity;
        }
      }
      online_softmax(tile, scores, values, k1 - k0, head_dim);
    }

    for (int64_t i = 0; i < tile.rows; ++i) {
      // A row that saw no key has sum 0: its output is 0 and its log-sum-exp is -inf, by convention.
      const float inverse = tile.sum[i] == 0 ? 0.0f : 1.0f / tile.sum[i];
      store_row(tile.out + i * head_dim, inverse, head_dim, out.row(batch, head, q0 + i));
      lse[(batch * shape.heads + head) * shape.q_len + q0 + i] = tile.maximum[i] + std::log(tile.sum[i]);
    }
  });
}

std::tuple<Tensor, Tensor> seq_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                       int64_t high) {
  const Shape shape = check_inputs(q, k, v, scale);
  Tensor out = empty_in_order_of(q);
  Tensor lse = empty_lse(q);
  const Workspace workspace(q, 1, 4 * Workspace::round_up(kSeqTile * shape.head_dim) + kSeqTile * (kSeqTile + 2));
  with_element_type(q, [&](auto element) {
    using T = decltype(element);
    forward(shape, view_of<T>(q), view_of<T>(k), view_of<T>(v), static_cast<float>(scale),
            Band::from_diagonals(low, high), view_of<T>(out), static_cast<float*>(lse.data_ptr()),
            Cutter(workspace.share(0)));
  });
  return {out, lse};
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def("seq_forward(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CPU, library) {
  library.impl("seq_forward", TORCH_BOX(&attn::seq_forward));
}

// tiled-seq, backward: the gradients of FlashAttention-2 (Dao 2023, arXiv:2307.08691, Algorithm 2), one thread.
//
// The weights are computed again from the log-sum-exp that the forward pass kept: P = exp(S - lse). With
// delta = rowsum(dO * O) - dlse, the gradient of the scores is dS = P * (dO V^T - delta); then
// dV = P^T dO, dK = scale * dS^T Q, dQ = scale * dS K. All sums are fp32 and are rounded once, at the end.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "../band.h"
#include "seq_tile.h"
#include "workspace.h"

namespace attn {
namespace {

template <typename T>
struct Gradients {
  View<T> dq, dk, dv;
};

template <typename T>
void backward(const Shape& shape, View<T> dout, View<T> q, View<T> k, View<T> v, View<T> out, const float* lse,
              const float* dlse, float scale, Band band, Gradients<T> grads, Cutter scratch) {
  const int64_t head_dim = shape.head_dim;
  const int64_t tile_size = kSeqTile * head_dim;
  float* queries = scratch.take(tile_size);
  float* douts = scratch.take(tile_size);
  float* outs = scratch.take(tile_size);
  float* dqueries = scratch.take(tile_size);
  float* keys = scratch.take(tile_size);
  float* values = scratch.take(tile_size);
  float* weights = scratch.take(kSeqTile * kSeqTile);  // scores, then P
  float* dscores = scratch.take(kSeqTile * kSeqTile);  // dP, then dS
  float* sum = scratch.take(head_dim);
  // Sums over all queries of one key head [K, D]. The query heads of a group come one after the other, so that the
  // first head of a group clears them and the last one writes them out.
  float* dkeys = scratch.take(shape.kv_len * head_dim);
  float* dvalues = scratch.take(shape.kv_len * head_dim);

  for_each_query_tile(shape, [&](int64_t batch, int64_t head, int64_t q0, int64_t q1) {
    const int64_t kv_head = head / shape.group();
    if (q0 == 0 && head % shape.group() == 0) {
      std::fill(dkeys, dkeys + shape.kv_len * head_dim, 0.0f);
      std::fill(dvalues, dvalues + shape.kv_len * head_dim, 0.0f);
    }
    load_tile(q, batch, head, q0, q1, head_dim, queries);
    load_tile(dout, batch, head, q0, q1, head_dim, douts);
    load_tile(out, batch, head, q0, q1, head_dim, outs);
    std::fill(dqueries, dqueries + tile_size, 0.0f);

    for (int64_t k0 = 0; k0 < shape.kv_len; k0 += kSeqTile) {
      const int64_t k1 = std::min(k0 + kSeqTile, shape.kv_len);
      if (band.hides_tile(q0, q1, k0, k1)) continue;
      load_tile(k, batch, kv_head, k0, k1, head_dim, keys);
      load_tile(v, batch, kv_head, k0, k1, head_dim, values);
      const int64_t rows = q1 - q0, columns = k1 - k0;
      score_tile(queries, keys, rows, columns, head_dim, scale, weights);
      score_tile(douts, values, rows, columns, head_dim, 1.0f, dscores);

      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = (batch * shape.heads + head) * shape.q_len + q0 + i;
        float delta = dlse == nullptr ? 0.0f : -dlse[row];
        for (int64_t d = 0; d < head_dim; ++d) delta += douts[i * head_dim + d] * outs[i * head_dim + d];
        for (int64_t j = 0; j < columns; ++j) {
          float& weight = weights[i * kSeqTile + j];
          float& dscore = dscores[i * kSeqTile + j];
          weight = band.sees(q0 + i, k0 + j) ? std::exp(weight - lse[row]) : 0.0f;
          dscore = weight * (dscore - delta);
        }
      }
      add_product(weights, 1, kSeqTile, columns, rows, douts, head_dim, sum, dvalues + k0 * head_dim);
      add_product(dscores, 1, kSeqTile, columns, rows, queries, head_dim, sum, dkeys + k0 * head_dim);
      add_product(dscores, kSeqTile, 1, rows, columns, keys, head_dim, sum, dqueries);
    }

    for (int64_t i = q0; i < q1; ++i) {
      store_row(dqueries + (i - q0) * head_dim, scale, head_dim, grads.dq.row(batch, head, i));
    }
    if (q1 == shape.q_len && (head + 1) % shape.group() == 0) {
      for (int64_t j = 0; j < shape.kv_len; ++j) {
        store_row(dkeys + j * head_dim, scale, head_dim, grads.dk.row(batch, kv_head, j));
        store_row(dvalues + j * head_dim, 1.0f, head_dim, grads.dv.row(batch, kv_head, j));
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> seq_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& out, const Tensor& lse, const std::optional<Tensor>& dlse,
                                                double scale, int64_t low, int64_t high) {
  const Shape shape = check_inputs(q, k, v, scale);
  check_saved(q, dout, out, lse);
  if (dlse) check_saved(q, dout, out, *dlse);
  Tensor dq = empty_in_order_of(q), dk = empty_in_order_of(k), dv = empty_in_order_of(v);
  const Workspace workspace(q, 1,
                            6 * Workspace::round_up(kSeqTile * shape.head_dim) + 2 * kSeqTile * kSeqTile +
                                Workspace::round_up(shape.head_dim) +
                                2 * Workspace::round_up(shape.kv_len * shape.head_dim));
  with_element_type(q, [&](auto element) {
    using T = decltype(element);
    backward(shape, view_of<T>(dout), view_of<T>(q), view_of<T>(k), view_of<T>(v), view_of<T>(out),
             static_cast<const float*>(lse.data_ptr()), dlse ? static_cast<const float*>(dlse->data_ptr()) : nullptr,
             static_cast<float>(scale), Band::from_diagonals(low, high),
             Gradients<T>{view_of<T>(dq), view_of<T>(dk), view_of<T>(dv)}, Cutter(workspace.share(0)));
  });
  return {dq, dk, dv};
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def(
      "seq_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, float scale, "
      "int low, int high) -> (Tensor dq, Tensor dk, Tensor dv)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CPU, library) {
  library.impl("seq_backward", TORCH_BOX(&attn::seq_backward));
}

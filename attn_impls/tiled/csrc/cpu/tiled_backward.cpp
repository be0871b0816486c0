// tiled-cpu, backward: FlashAttention-2 (Dao 2023, arXiv:2307.08691, Algorithm 2), parallel and in vectors.
//
// As in the forward pass, scores lie transposed, keys by queries. A task is one key head, or, when there are fewer
// of them than the machine can use, one of several parts of its queries. It walks over tiles of queries and, inside,
// tiles of keys, with five products a step. dQ of the tile is finished when the walk over the keys ends; dK and dV
// are summed up in fp32 for the whole task, and the parts are added in a fixed order. So no two threads write to the
// same place, and the bits do not depend on how many threads there are.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <thread>
#include <tuple>

#include "../band.h"
#include "matmul.h"
#include "score_product.h"
#include "tasks.h"
#include "tile_io.h"
#include "vector.h"
#include "workspace.h"

namespace attn {
namespace {

constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 64;
constexpr int64_t kMostParts = 8;  // each costs fp32 copies of dK and dV

// What one worker needs; see floats().
struct Scratch {
  float *q, *dout, *out, *q_transposed, *dout_transposed, *dq, *keys, *values, *weights, *dscores, *lse, *delta;

  Scratch(float* share, int64_t width) {
    Cutter cutter(share);
    for (float** tile : {&q, &dout, &out, &q_transposed, &dout_transposed, &dq}) *tile = cutter.take(kQueries * width);
    for (float** tile : {&keys, &values}) *tile = cutter.take(kKeys * width);
    for (float** tile : {&weights, &dscores}) *tile = cutter.take(kKeys * kQueries);
    for (float** tile : {&lse, &delta}) *tile = cutter.take(kQueries);
  }

  static int64_t floats(int64_t width) {
    return 6 * kQueries * width + 2 * kKeys * width + 2 * kKeys * kQueries + 2 * kQueries;
  }
};

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

  // lse, and delta = rowsum(dO * O) - dlse, for the tile's queries.
  void load_statistics(int64_t row, int64_t queries, int64_t tile_width, Rows douts, Rows outs,
                       const Scratch& s) const {
    for (int64_t i = 0; i < tile_width; ++i) {
      const float value = i < queries ? lse[row + i] : kMinusInfinity;
      // A query without keys, like a column beyond the last query, gets weights exp(score - inf) = 0.
      s.lse[i] = value == kMinusInfinity ? std::numeric_limits<float>::infinity() : value;
      float delta = 0;
      if (i < queries) {
        const float *a = douts.data + i * douts.stride, *b = outs.data + i * outs.stride;
        Vec sum{};
        for (int64_t d = 0; d < width(); d += kLanes) sum += load(a + d) * load(b + d);
        for (int64_t lane = 0; lane < kLanes; ++lane) delta += sum[lane];
        if (dlse != nullptr) delta -= dlse[row + i];
      }
      s.delta[i] = delta;
    }
  }

  // scores -> weights P = exp(scale * scores - lse), and dP -> dS = P * (dP - delta), over [keys, tile_width].
  void differentiate(const Scratch& s, int64_t keys, int64_t tile_width) const {
    for (int64_t i = 0; i < tile_width; i += kLanes) {
      const Vec lse = load(s.lse + i), delta = load(s.delta + i);
      for (int64_t j = 0; j < keys; ++j) {
        const int64_t at = j * tile_width + i;
        const Vec weight = exp(load(s.weights + at) * scale - lse);
        store(s.weights + at, weight);
        store(s.dscores + at, weight * (load(s.dscores + at) - delta));
      }
    }
  }

  // Everything that the queries [q0, q1) of one head contribute.
  void run_tile(int64_t batch, int64_t head, int64_t q0, int64_t q1, const Scratch& s, Sums sums) const {
    const int64_t head_dim = shape.head_dim, width = this->width(), kv_head = head / shape.group();
    const int64_t queries = q1 - q0, tile_width = round_up_to_lanes(queries);
    const Rows q_rows = widen_rows(q, batch, head, q0, q1, head_dim, s.q);
    const Rows dout_rows = widen_rows(dout, batch, head, q0, q1, head_dim, s.dout);
    const Rows out_rows = widen_rows(out, batch, head, q0, q1, head_dim, s.out);
    load_statistics((batch * shape.heads + head) * shape.q_len + q0, queries, tile_width, dout_rows, out_rows, s);
    const ScoreProduct<T> score_product(head_dim, k, q), dweight_product(head_dim, v, dout);
    score_product.set_right(batch, head, q0, q1, q_rows, s.q_transposed, tile_width);
    dweight_product.set_right(batch, head, q0, q1, dout_rows, s.dout_transposed, tile_width);
    std::fill(s.dq, s.dq + queries * width, 0.0f);

    for (int64_t k0 = 0; k0 < shape.kv_len; k0 += kKeys) {
      const int64_t k1 = std::min(k0 + kKeys, shape.kv_len), keys = k1 - k0;
      if (band.hides_tile(q0, q1, k0, k1)) continue;
      const Rows key_rows = widen_rows(k, batch, kv_head, k0, k1, head_dim, s.keys);
      const Rows value_rows = dweight_product.widen_left(batch, kv_head, k0, k1, s.values);
      const Factor weights{s.weights, tile_width, 1}, dscores{s.dscores, tile_width, 1};
      const Factor dscores_transposed{s.dscores, 1, tile_width};

      score_product.multiply(batch, kv_head, k0, k1, key_rows, s.q_transposed, tile_width, s.weights);
      if (!band.shows_tile(q0, q1, k0, k1)) mask_scores(band, q0, k0, keys, queries, s.weights, tile_width);
      dweight_product.multiply(batch, kv_head, k0, k1, value_rows, s.dout_transposed, tile_width, s.dscores);
      differentiate(s, keys, tile_width);
      matmul(Into::kAdd, keys, width, queries, weights, dout_rows.data, dout_rows.stride, sums.dv + k0 * width, width);
      matmul(Into::kAdd, keys, width, queries, dscores, q_rows.data, q_rows.stride, sums.dk + k0 * width, width);
      matmul(Into::kAdd, queries, width, keys, dscores_transposed, key_rows.data, key_rows.stride, s.dq, width);
    }
    for (int64_t i = 0; i < queries; ++i) narrow(s.dq + i * width, scale, head_dim, dq.row(batch, head, q0 + i));
  }

  void store_sums(int64_t batch, int64_t kv_head, Sums sums) const {
    for (int64_t j = 0; j < shape.kv_len; ++j) {
      narrow(sums.dk + j * width(), scale, shape.head_dim, dk.row(batch, kv_head, j));
      narrow(sums.dv + j * width(), 1.0f, shape.head_dim, dv.row(batch, kv_head, j));
    }
  }
};

// Into how many parts to cut the queries of a key head. It depends on the machine and not on the number of threads
// that are in use, because the order of additions, and with it the last bits, follows from it.
int64_t parts_a_head(const Shape& shape, int64_t tiles) {
  const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t heads = std::max<int64_t>(1, shape.batch * shape.kv_heads);
  return std::clamp<int64_t>((2 * processors + heads - 1) / heads, 1, std::min(kMostParts, tiles));
}

template <typename T>
void run_backward(const Backward<T>& backward, const Tensor& like) {
  const Shape& shape = backward.shape;
  const int64_t tiles_a_head = (shape.q_len + kQueries - 1) / kQueries;
  const int64_t tiles = tiles_a_head * shape.group();  // that share one key head
  const int64_t parts = parts_a_head(shape, tiles);
  const int64_t kv_heads = shape.batch * shape.kv_heads;
  const int64_t workers = worker_count(kv_heads * parts);
  const int64_t sum_size = Workspace::round_up(shape.kv_len * backward.width());
  const Workspace scratch(like, workers, Scratch::floats(backward.width()));
  // With one part a head its worker stores the sums itself and uses their memory again; with more they are kept.
  const Workspace sums(like, parts == 1 ? workers : kv_heads * parts, 2 * sum_size);
  const auto sums_at = [&](int64_t index) { return Sums{sums.share(index), sums.share(index) + sum_size}; };

  run_tasks(kv_heads * parts, workers, [&](int64_t task, int64_t slot) {
    const int64_t batch = task / parts / shape.kv_heads, kv_head = task / parts % shape.kv_heads, part = task % parts;
    const Sums own = sums_at(parts == 1 ? slot : task);
    std::fill(own.dk, own.dk + 2 * sum_size, 0.0f);
    // Every parts-th tile, so that under a causal mask the parts are about equal.
    for (int64_t tile = part; tile < tiles; tile += parts) {
      const int64_t head = kv_head * shape.group() + tile / tiles_a_head, q0 = tile % tiles_a_head * kQueries;
      backward.run_tile(batch, head, q0, std::min(q0 + kQueries, shape.q_len),
                        Scratch(scratch.share(slot), backward.width()), own);
    }
    if (parts == 1) backward.store_sums(batch, kv_head, own);
  });
  if (parts == 1) return;
  run_tasks(kv_heads, worker_count(kv_heads), [&](int64_t kv_head, int64_t) {
    const Sums total = sums_at(kv_head * parts);
    for (int64_t part = 1; part < parts; ++part) {
      const float* more = sums_at(kv_head * parts + part).dk;
      for (int64_t i = 0; i < 2 * sum_size; ++i) total.dk[i] += more[i];
    }
    backward.store_sums(kv_head / shape.kv_heads, kv_head % shape.kv_heads, total);
  });
}

std::tuple<Tensor, Tensor, Tensor> cpu_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& out, const Tensor& lse, const std::optional<Tensor>& dlse,
                                                double scale, int64_t low, int64_t high) {
  const Shape shape = check_inputs(q, k, v, scale);
  check_saved(q, dout, out, lse);
  if (dlse) check_saved(q, dout, out, *dlse);
  Tensor dq = empty_in_order_of(q), dk = empty_in_order_of(k), dv = empty_in_order_of(v);
  with_element_type(q, [&](auto element) {
    using T = decltype(element);
    run_backward(Backward<T>{shape, view_of<T>(dout), view_of<T>(q), view_of<T>(k), view_of<T>(v), view_of<T>(out),
                             view_of<T>(dq), view_of<T>(dk), view_of<T>(dv), static_cast<const float*>(lse.data_ptr()),
                             dlse ? static_cast<const float*>(dlse->data_ptr()) : nullptr, static_cast<float>(scale),
                             Band::from_diagonals(low, high)},
                 q);
  });
  return {dq, dk, dv};
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def(
      "cpu_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, float scale, "
      "int low, int high) -> (Tensor dq, Tensor dk, Tensor dv)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CPU, library) {
  library.impl("cpu_backward", TORCH_BOX(&attn::cpu_backward));
}

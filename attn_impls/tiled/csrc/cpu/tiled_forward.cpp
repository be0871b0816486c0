// tiled-cpu, forward: FlashAttention-2 (Dao 2023, arXiv:2307.08691, Algorithm 1), parallel and in vectors.
//
// A task is one tile of queries of one head. It keeps the scores transposed, keys by queries: the softmax of a query
// then runs down a column, so that one vector holds one quantity of 16 queries, and maximum and sum need no
// reduction inside a vector. A tile of scores stays in the L1 or L2 cache from the product that makes it to the product
// that uses it.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
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

constexpr int64_t kQueries = 64;  // queries a task
constexpr int64_t kKeys = 128;    // keys a step; with kQueries a tile of scores has 32 KB

// What one worker needs; see floats().
struct Scratch {
  float *q, *q_transposed, *keys, *values, *scores, *out, *maximum, *sum, *alpha;

  Scratch(float* share, int64_t width) {
    Cutter cutter(share);
    q = cutter.take(kQueries * width);
    q_transposed = cutter.take(kQueries * width);
    keys = cutter.take(kKeys * width);
    values = cutter.take(kKeys * width);
    scores = cutter.take(kKeys * kQueries);
    out = cutter.take(kQueries * width);
    maximum = cutter.take(kQueries);
    sum = cutter.take(kQueries);
    alpha = cutter.take(kQueries);
  }

  static int64_t floats(int64_t width) {
    return 3 * kQueries * width + 2 * kKeys * width + kKeys * kQueries + 3 * kQueries;
  }
};

// Turn a tile of scores [keys, width], before scaling, into weights, and fold its maximum and sum into those of the
// queries. alpha is the factor for what was summed up before.
void online_softmax(const Scratch& s, int64_t keys, int64_t width, float scale) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec before = load(s.maximum + i);
    Vec highest = before;
    for (int64_t j = 0; j < keys; ++j) highest = maximum(highest, load(s.scores + j * width + i) * scale);
    // While no key of a query was visible its maximum is -inf; 0 in its place makes every weight exp(-inf) = 0.
    const Vec shift = highest == kMinusInfinity ? Vec{} : highest;
    const Vec alpha = exp(before - shift);
    // The tile by itself: in one long sum weights that are almost equal lose the same in every addition.
    Vec sum = splat(0.0f);
    for (int64_t j = 0; j < keys; ++j) {
      float* score = s.scores + j * width + i;
      const Vec weight = exp(load(score) * scale - shift);
      store(score, weight);
      sum += weight;
    }
    store(s.maximum + i, highest);
    store(s.sum + i, load(s.sum + i) * alpha + sum);
    store(s.alpha + i, alpha);
  }
}

template <typename T>
struct Forward {
  Shape shape;
  View<T> q, k, v, out;
  float* lse;
  float scale;
  Band band;

  // The tile of queries [q0, q1) of one head.
  void run(int64_t batch, int64_t head, int64_t q0, int64_t q1, const Scratch& s) const {
    const int64_t queries = q1 - q0, width = round_up_to_lanes(queries);
    const int64_t head_dim = shape.head_dim, out_width = round_up_to_lanes(head_dim);
    const int64_t kv_head = head / shape.group();
    const ScoreProduct<T> score_product(head_dim, k, q);
    score_product.set_right(batch, head, q0, q1, widen_rows(q, batch, head, q0, q1, head_dim, s.q), s.q_transposed,
                            width);
    std::fill(s.maximum, s.maximum + width, kMinusInfinity);
    std::fill(s.sum, s.sum + width, 0.0f);

    bool first = true;
    for (int64_t k0 = 0; k0 < shape.kv_len; k0 += kKeys) {
      const int64_t k1 = std::min(k0 + kKeys, shape.kv_len), keys = k1 - k0;
      if (band.hides_tile(q0, q1, k0, k1)) continue;
      const Rows key_rows = score_product.widen_left(batch, kv_head, k0, k1, s.keys);
      const Rows value_rows = widen_rows(v, batch, kv_head, k0, k1, head_dim, s.values);
      score_product.multiply(batch, kv_head, k0, k1, key_rows, s.q_transposed, width, s.scores);
      if (!band.shows_tile(q0, q1, k0, k1)) mask_scores(band, q0, k0, keys, queries, s.scores, width);
      online_softmax(s, keys, width, scale);
      matmul(first ? Into::kSet : Into::kRescale, queries, out_width, keys, {s.scores, 1, width}, value_rows.data,
             value_rows.stride, s.out, out_width, s.alpha);
      first = false;
    }
    if (first) std::fill(s.out, s.out + queries * out_width, 0.0f);

    for (int64_t i = 0; i < queries; ++i) {
      // A query that saw no key has sum 0: its output is 0 and its log-sum-exp is -inf, by convention.
      const float inverse = s.sum[i] == 0 ? 0.0f : 1.0f / s.sum[i];
      narrow(s.out + i * out_width, inverse, head_dim, out.row(batch, head, q0 + i));
      lse[(batch * shape.heads + head) * shape.q_len + q0 + i] = s.maximum[i] + std::log(s.sum[i]);
    }
  }
};

std::tuple<Tensor, Tensor> cpu_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                       int64_t high) {
  const Shape shape = check_inputs(q, k, v, scale);
  Tensor out = empty_in_order_of(q);
  Tensor lse = empty_lse(q);
  const int64_t tiles = (shape.q_len + kQueries - 1) / kQueries;
  const int64_t tasks = shape.batch * shape.heads * tiles;
  const int64_t workers = worker_count(tasks);
  const int64_t width = round_up_to_lanes(shape.head_dim);
  const Workspace workspace(q, workers, Scratch::floats(width));
  with_element_type(q, [&](auto element) {
    using T = decltype(element);
    const Forward<T> forward{shape,
                             view_of<T>(q),
                             view_of<T>(k),
                             view_of<T>(v),
                             view_of<T>(out),
                             static_cast<float*>(lse.data_ptr()),
                             static_cast<float>(scale),
                             Band::from_diagonals(low, high)};
    // The last tile of a head comes first: under a causal mask it sees the most keys, and what is handed out at the
    // very end should be small. Tiles of one head follow each other because they share keys and values.
    run_tasks(tasks, workers, [&](int64_t task, int64_t slot) {
      const int64_t tile = tiles - 1 - task % tiles, head = task / tiles % shape.heads;
      forward.run(task / tiles / shape.heads, head, tile * kQueries, std::min((tile + 1) * kQueries, shape.q_len),
                  Scratch(workspace.share(slot), width));
    });
  });
  return {out, lse};
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def("cpu_forward(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CPU, library) {
  library.impl("cpu_forward", TORCH_BOX(&attn::cpu_forward));
}

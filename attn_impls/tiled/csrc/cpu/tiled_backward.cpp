// tiled-cpu, backward: FlashAttention-2 (Dao 2023, arXiv:2307.08691, Algorithm 2), parallel and in vectors.
//
// As in the forward pass, scores lie transposed, keys by queries. A task is one key head, or, when there are fewer
// of them than the machine can use, one of several parts of its queries. It walks over tiles of queries and, inside,
// tiles of keys, with five products a step. dQ of the tile is finished when the walk over the keys ends; dK and dV
// are summed up in fp32 for the whole task, and the parts are added in a fixed order. So no two threads write to the
// same place, and the bits do not depend on how many threads there are.
//
// A step is written twice: in fp32 for every dtype and CPU, and in pairs of bf16 for bf16 on a CPU that multiplies
// them.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <tuple>
#include <type_traits>

#include "backward.h"
#include "backward_in_floats.h"
#include "backward_in_pairs.h"
#include "tasks.h"
#include "workspace.h"

namespace attn {
namespace {

constexpr int64_t kMostParts = 8;  // each costs fp32 copies of dK and dV

// Into how many parts to cut the queries of a key head. It depends on the machine and not on the number of threads
// that are in use, because the order of additions, and with it the last bits, follows from it.
int64_t parts_a_head(const Shape& shape, int64_t tiles) {
  const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t heads = std::max<int64_t>(1, shape.batch * shape.kv_heads);
  return std::clamp<int64_t>((2 * processors + heads - 1) / heads, 1, std::min(kMostParts, tiles));
}

template <typename T>
using TileOf = std::conditional_t<kHasPairs && std::is_same_v<T, BFloat16>, PairTile, FloatTile<T>>;

// Tile computes what a tile of queries contributes, as FloatTile and PairTile do.
template <typename Tile, typename T>
void run_backward(const Backward<T>& backward, const Tensor& like) {
  const Shape& shape = backward.shape;
  const int64_t tiles_a_head = (shape.q_len + Tile::kQueries - 1) / Tile::kQueries;
  const int64_t tiles = tiles_a_head * shape.group();  // that share one key head
  const int64_t parts = parts_a_head(shape, tiles);
  const int64_t kv_heads = shape.batch * shape.kv_heads;
  const int64_t workers = worker_count(kv_heads * parts);
  const int64_t sum_size = Workspace::round_up(shape.kv_len * backward.width());
  const Workspace scratch(like, workers, Tile::floats(backward.width()));
  // With one part a head its worker stores the sums itself and uses their memory again; with more they are kept.
  const Workspace sums(like, parts == 1 ? workers : kv_heads * parts, 2 * sum_size);
  const auto sums_at = [&](int64_t index) { return Sums{sums.share(index), sums.share(index) + sum_size}; };

  run_tasks(kv_heads * parts, workers, [&](int64_t task, int64_t slot) {
    const int64_t batch = task / parts / shape.kv_heads, kv_head = task / parts % shape.kv_heads, part = task % parts;
    const Sums own = sums_at(parts == 1 ? slot : task);
    std::fill(own.dk, own.dk + 2 * sum_size, 0.0f);
    // Every parts-th tile, so that under a causal mask the parts are about equal.
    for (int64_t tile = part; tile < tiles; tile += parts) {
      const int64_t head = kv_head * shape.group() + tile / tiles_a_head, q0 = tile % tiles_a_head * Tile::kQueries;
      Tile(backward, scratch.share(slot)).run(batch, head, q0, std::min(q0 + Tile::kQueries, shape.q_len), own);
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
    run_backward<TileOf<T>>(
        Backward<T>{shape, view_of<T>(dout), view_of<T>(q), view_of<T>(k), view_of<T>(v), view_of<T>(out),
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

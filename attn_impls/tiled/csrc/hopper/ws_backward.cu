// tiled-ws, backward: a warp that copies Q and dO, warpgroups that own keys, dQ added up by the copy engine.
//
// What:  three kernels, as in tiled-async: the rows' numbers, the products, the rounding of dQ. In the second a block
//        holds 128 keys and values in shared memory while one warp asks for tiles of Q and dO, and visits all queries
//        that see them, of all query heads that read its key head. backward_keys.h says how the five products of a
//        visit follow one another. P^T and dS^T never leave the registers as factors of dV and dK; for dQ = dS K, dS is
//        the one thing that passes through shared memory, and the result leaves as 4096-byte additions that the copy
//        engine sends to the L2 cache while the tensor cores go on.
// Why:   tiled-async reads each fragment of Q and dO for 16 rows of result, and shared memory holds it back. wgmma
// reads
//        them for 64, and by itself. Ordinary additions to dQ take instructions of the warps that compute.
// Deterministic: the additions of a tile of queries wait for those of the key tiles before it, counted in global
// memory.
//        A block waits for blocks of lower number only, which were started before it. They fall into step once, one
//        visit after the other, so that it costs little where there are many blocks.
// Limit: five products read 368 KB of shared memory a visit at head dim 128 and keep the tensor cores waiting for an
//        eighth of the time. Heads wider than 128 do not fit the registers: tiled-async's backward takes them.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "ws_backward.h"

namespace attn {
namespace {

std::tuple<Tensor, Tensor, Tensor> backward(bool deterministic, const Tensor& dout_given, const Tensor& q_given,
                                            const Tensor& k_given, const Tensor& v_given, const Tensor& out_given,
                                            const Tensor& lse, const std::optional<Tensor>& dlse, double scale,
                                            int64_t low, int64_t high) {
  const Shape shape = check_inputs(q_given, k_given, v_given, scale);
  check_tensor_core_inputs(q_given, k_given);
  STD_TORCH_CHECK(shape.head_dim <= kMostHopperBackwardColumns, "head_dim must be at most ", kMostHopperBackwardColumns,
                  ", got ", shape.head_dim);
  check_saved(q_given, dout_given, out_given, lse);
  if (dlse) check_saved(q_given, dout_given, out_given, *dlse);
  check_hopper(q_given);
  const Tensor q = with_mappable_rows(q_given), k = with_mappable_rows(k_given), v = with_mappable_rows(v_given);
  const Tensor out = with_aligned_rows(out_given), dout = with_mappable_rows(dout_given);
  Tensor dq = empty_in_order_of(q_given), dk = empty_in_order_of(k_given), dv = empty_in_order_of(v_given);
  if (shape.batch == 0) return {dq, dk, dv};  // no map is as small

  with_half_type(q, [&](auto element) {
    with_key_columns(shape.head_dim, [&](auto columns) {
      using T = decltype(element);
      using Tiles = WsBackward<decltype(columns)::kValue>;
      const int64_t tiles = (shape.q_len + Tiles::kQueries - 1) / Tiles::kQueries, padded = tiles * Tiles::kQueries;
      const int64_t rows = shape.batch * shape.heads * padded;
      Tensor row_numbers = torch::stable::new_empty(q, {2, rows}, ScalarType::Float);
      Tensor dq_sum = torch::stable::new_zeros(q, {rows, Tiles::kColumns}, ScalarType::Float);
      Tensor added =
          torch::stable::new_zeros(q, {deterministic ? shape.batch * shape.heads * tiles : 0}, ScalarType::Int);
      float* const lse_log2 = static_cast<float*>(row_numbers.data_ptr());
      const float scale_log2 = static_cast<float>(scale * M_LOG2E);
      // Blocks that wait for each other must agree on which of them there are: a band that is empty has no tiles.
      const Band band = low <= high ? Band::from_diagonals(low, high) : Band{kFarthest, -kFarthest};
      const BackwardParams<T> params{shape,
                                     view_of<const T>(q),
                                     view_of<const T>(k),
                                     view_of<const T>(v),
                                     view_of<const T>(out),
                                     view_of<const T>(dout),
                                     view_of<T>(dq),
                                     view_of<T>(dk),
                                     view_of<T>(dv),
                                     static_cast<const float*>(lse.data_ptr()),
                                     dlse ? static_cast<const float*>(dlse->data_ptr()) : nullptr,
                                     lse_log2,
                                     lse_log2 + rows,
                                     static_cast<float*>(dq_sum.data_ptr()),
                                     static_cast<int>(padded),
                                     static_cast<float>(scale),
                                     scale_log2,
                                     band};
      const HopperBackwardParams hopper{map_of(q, Tiles::kQueries),
                                        map_of(k, Tiles::kKeys),
                                        map_of(v, Tiles::kKeys),
                                        map_of(dout, Tiles::kQueries),
                                        map_of(dk, kPiece),
                                        map_of(dv, kPiece),
                                        shape,
                                        params.lse_log2,
                                        params.delta,
                                        params.dq_sum,
                                        deterministic ? static_cast<int*>(added.data_ptr()) : nullptr,
                                        params.padded,
                                        params.scale,
                                        scale_log2,
                                        TileBand::of(band)};
      launch_ws_backward<T, Tiles>(q, params, hopper);
    });
  });
  return {dq, dk, dv};
}

std::tuple<Tensor, Tensor, Tensor> ws_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                               const Tensor& out, const Tensor& lse, std::optional<Tensor> dlse,
                                               double scale, int64_t low, int64_t high) {
  return backward(false, dout, q, k, v, out, lse, dlse, scale, low, high);
}

std::tuple<Tensor, Tensor, Tensor> ws_backward_deterministic(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                             const Tensor& v, const Tensor& out, const Tensor& lse,
                                                             std::optional<Tensor> dlse, double scale, int64_t low,
                                                             int64_t high) {
  return backward(true, dout, q, k, v, out, lse, dlse, scale, low, high);
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def(
      "ws_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, float scale, "
      "int low, int high) -> (Tensor dq, Tensor dk, Tensor dv)");
  library.def(
      "ws_backward_deterministic(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, "
      "float scale, int low, int high) -> (Tensor dq, Tensor dk, Tensor dv)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CUDA, library) {
  library.impl("ws_backward", TORCH_BOX(&attn::ws_backward));
  library.impl("ws_backward_deterministic", TORCH_BOX(&attn::ws_backward_deterministic));
}

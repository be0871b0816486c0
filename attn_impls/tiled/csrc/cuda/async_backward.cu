// tiled-async, backward: five products a tile, the gradients of keys and values summed up in registers.
//
// What:  a first kernel takes delta = sum(dout * out) of every query. Then a block owns a tile of keys, 16 or 32 to a
//        warp, and Q and dO pass through shared memory, one visit ahead. The scores are computed transposed, K Q^T, so
//        that the weights and their gradients come out as C fragments whose rows are the warp's own keys: rounded, they
//        are the A fragments of dV += P^T dO and dK += dS^T Q, and only dS goes through shared memory, for dQ = dS K.
//        The weights' exponentials take turns with the product V dO^T, which does not wait for them. Every block has a
//        share of every query's dQ: fp32 additions to global memory, laid out as fragments, 512 contiguous bytes a
//        warp. A last kernel rounds their sums. The query heads of a group pass through the block that owns their key
//        head, so dK and dV need no addition between blocks.
// Deterministic: the additions to dQ arrive in any order, so its last bits vary from run to run. The other form
//        leaves dQ out and gives it a kernel of its own, in which a block owns queries: seven products instead of five.
//        Heads wider than 128 always take it, and dK and dV one after the other, for want of registers: eight products.
// Limit: shared memory. 16 keys a warp (head_dim > 64) read each fragment of Q and dO for only 16 rows of result. Few
//        key heads with short sequences leave multiprocessors idle.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "async_backward_launch.h"

namespace attn {
namespace {

std::tuple<Tensor, Tensor, Tensor> backward(bool deterministic, const Tensor& dout_given, const Tensor& q_given,
                                            const Tensor& k_given, const Tensor& v_given, const Tensor& out_given,
                                            const Tensor& lse, const std::optional<Tensor>& dlse, double scale,
                                            int64_t low, int64_t high) {
  const Shape shape = check_inputs(q_given, k_given, v_given, scale);
  check_tensor_core_inputs(q_given, k_given);
  check_saved(q_given, dout_given, out_given, lse);
  if (dlse) check_saved(q_given, dout_given, out_given, *dlse);
  const Tensor q = with_aligned_rows(q_given), k = with_aligned_rows(k_given), v = with_aligned_rows(v_given);
  const Tensor out = with_aligned_rows(out_given), dout = with_aligned_rows(dout_given);
  Tensor dq = empty_in_order_of(q_given), dk = empty_in_order_of(k_given), dv = empty_in_order_of(v_given);

  const int64_t padded = (shape.q_len + kPaddedRows - 1) / kPaddedRows * kPaddedRows;
  const int64_t rows = shape.batch * shape.heads * padded;
  Tensor row_numbers = empty_floats(q, 2 * rows);
  float* const lse_log2 = static_cast<float*>(row_numbers.data_ptr());
  int64_t dq_numbers = 0;
  with_tile_columns(shape.head_dim, [&](auto constant) {
    constexpr int columns = decltype(constant)::kValue;
    if (!deterministic && !AsyncBackward<columns>::kSplit) dq_numbers = rows * columns;
  });
  Tensor dq_sum = empty_floats(q, dq_numbers);
  torch::stable::zero_(dq_sum);

  with_half_type(q, [&](auto element) {
    using T = decltype(element);
    launch_async_backward(
        q, BackwardParams<T>{shape, view_of<const T>(q), view_of<const T>(k), view_of<const T>(v),
                             view_of<const T>(out), view_of<const T>(dout), view_of<T>(dq), view_of<T>(dk),
                             view_of<T>(dv), static_cast<const float*>(lse.data_ptr()),
                             dlse ? static_cast<const float*>(dlse->data_ptr()) : nullptr, lse_log2, lse_log2 + rows,
                             dq_numbers > 0 ? static_cast<float*>(dq_sum.data_ptr()) : nullptr,
                             static_cast<int>(padded), static_cast<float>(scale), static_cast<float>(scale * M_LOG2E),
                             Band::from_diagonals(low, high)});
  });
  return {dq, dk, dv};
}

std::tuple<Tensor, Tensor, Tensor> async_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const Tensor& out, const Tensor& lse, std::optional<Tensor> dlse,
                                                  double scale, int64_t low, int64_t high) {
  return backward(false, dout, q, k, v, out, lse, dlse, scale, low, high);
}

std::tuple<Tensor, Tensor, Tensor> async_backward_deterministic(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                                const Tensor& v, const Tensor& out, const Tensor& lse,
                                                                std::optional<Tensor> dlse, double scale, int64_t low,
                                                                int64_t high) {
  return backward(true, dout, q, k, v, out, lse, dlse, scale, low, high);
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def(
      "async_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, float scale, "
      "int low, int high) -> (Tensor dq, Tensor dk, Tensor dv)");
  library.def(
      "async_backward_deterministic(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, "
      "float scale, int low, int high) -> (Tensor dq, Tensor dk, Tensor dv)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CUDA, library) {
  library.impl("async_backward", TORCH_BOX(&attn::async_backward));
  library.impl("async_backward_deterministic", TORCH_BOX(&attn::async_backward_deterministic));
}

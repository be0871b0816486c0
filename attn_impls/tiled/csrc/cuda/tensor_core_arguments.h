// What the tensor-core kernels ask of their tensors, beyond what every kernel does, and the choice of a kernel for
// them.
#pragma once

#include <cmath>
#include <tuple>

#include "launch.h"
#include "params.h"
#include "tile_mask.h"

namespace attn {

constexpr int kMostTensorCoreHeadDim = 256;

// Positions are 32-bit numbers in these kernels, offsets in memory are 64-bit ones.
inline void check_tensor_core_inputs(const Tensor& q, const Tensor& k) {
  ATTN_CHECK(q.scalar_type() != ScalarType::Float, "q must be bfloat16 or float16, got float32");
  ATTN_CHECK(q.size(3) % 8 == 0 && q.size(3) <= kMostTensorCoreHeadDim, "head_dim must be a multiple of 8 and at most ",
             kMostTensorCoreHeadDim, ", got ", q.size(3));
  ATTN_CHECK(q.size(2) <= kMostRows && k.size(2) <= kMostRows, "q ", sizes_of(q), " and k ", sizes_of(k),
             " must have at most ", kMostRows, " rows a head");
}

// The tensor, or a copy of it where some row of it does not begin at a multiple of 16 bytes, as vector loads need.
inline Tensor with_aligned_rows(const Tensor& tensor) {
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
  for (int64_t dim = 0; dim < 3; ++dim) aligned &= tensor.size(dim) <= 1 || tensor.stride(dim) % 8 == 0;
  if (aligned) return tensor;
  Tensor copy = empty_in_order_of(tensor);
  torch::stable::copy_(copy, tensor);
  return copy;
}

template <int value>
struct Constant {
  static constexpr int kValue = value;
};

// Call body(Constant<columns>{}) with the narrowest tile that holds the head dimension.
template <typename Body>
void with_tile_columns(int64_t head_dim, const Body& body) {
  if (head_dim <= 32) return body(Constant<32>{});
  if (head_dim <= 64) return body(Constant<64>{});
  if (head_dim <= 96) return body(Constant<96>{});
  if (head_dim <= 128) return body(Constant<128>{});
  if (head_dim <= 192) return body(Constant<192>{});
  return body(Constant<256>{});
}

// Check the inputs, make the outputs, and call start(q, params) with the parameters in the dtype of q; it launches the
// kernel on the device of q. Returns (out, lse).
template <typename Start>
std::tuple<Tensor, Tensor> tensor_core_forward(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                               double scale, int64_t low, int64_t high, const Start& start) {
  const Shape shape = check_inputs(q_given, k_given, v_given, scale);
  check_tensor_core_inputs(q_given, k_given);
  const Tensor q = with_aligned_rows(q_given), k = with_aligned_rows(k_given), v = with_aligned_rows(v_given);
  Tensor out = empty_in_order_of(q_given);
  Tensor lse = empty_lse(q_given);
  with_half_type(q, [&](auto element) {
    using T = decltype(element);
    start(q, ForwardParams<T>{shape, view_of<const T>(q), view_of<const T>(k), view_of<const T>(v), view_of<T>(out),
                              static_cast<float*>(lse.data_ptr()), static_cast<float>(scale * M_LOG2E),
                              Band::from_diagonals(low, high)});
  });
  return {out, lse};
}

}  // namespace attn

// What the forward operators share on the host: checks, results, parameters, and the operator's registration.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "launch.h"
#include "params.h"

namespace attn {

// Call start(params) with the parameters in the dtype of q; it launches the kernel. Returns (out, lse).
template <typename Start>
std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                   int64_t high, const Start& start) {
  const Shape shape = check_inputs(q, k, v, scale);
  STD_TORCH_CHECK(shape.head_dim <= kMostHeadDim, "head_dim must be at most ", kMostHeadDim, ", got ", shape.head_dim);
  Tensor out = empty_in_order_of(q);
  Tensor lse = empty_lse(q);
  with_device_type(q, [&](auto element) {
    using T = decltype(element);
    start(ForwardParams<T>{shape, view_of<const T>(q), view_of<const T>(k), view_of<const T>(v), view_of<T>(out),
                           static_cast<float*>(lse.data_ptr()), static_cast<float>(scale * M_LOG2E),
                           Band::from_diagonals(low, high)});
  });
  return {out, lse};
}

}  // namespace attn

// Register the function attn::NAME as the operator attn_tiled::NAME on CUDA.
#define ATTN_FORWARD_OP(NAME)                                                                                        \
  STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {                                                               \
    library.def(#NAME "(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)"); \
  }                                                                                                                  \
  STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CUDA, library) {                                                             \
    library.impl(#NAME, TORCH_BOX(&attn::NAME));                                                                     \
  }

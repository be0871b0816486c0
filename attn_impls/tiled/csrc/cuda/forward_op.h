// What the forward operators of the fp32 rungs share on the host: checks, results, parameters.
#pragma once

#include <cmath>
#include <tuple>

#include "launch.h"
#include "params.h"
#include "register_forward.h"

namespace attn {

// Call start(params) with the parameters in the dtype of q; it launches the kernel. Returns (out, lse).
template <typename Start>
std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                   int64_t high, const Start& start) {
  const Shape shape = check_inputs(q, k, v, scale);
  ATTN_CHECK(shape.head_dim <= kMostHeadDim, "head_dim must be at most ", kMostHeadDim, ", got ", shape.head_dim);
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

// Launches the backward kernels for one element type, dQ by additions where `dq_sum` is given; each type is a source file of its own, compiled beside the other.
#pragma once

#include "async_backward.h"
#include "tensor_core_arguments.h"

namespace attn {

template <typename T>
void launch_async_backward(const Tensor& on, const BackwardParams<T>& params) {
  const Shape& shape = params.shape;
  const int64_t rows = shape.batch * shape.heads * params.padded;
  launch(on, rows / kRowsABlock, dim3(kElementwiseThreads), 0, async_backward_prepare_kernel<T>, params);
  with_tile_columns(shape.head_dim, [&](auto constant) {
    constexpr int columns = decltype(constant)::kValue;
    using Blocks = AsyncBackward<columns>;
    const auto launch_keys = [&](auto parts_constant) {
      constexpr int parts = decltype(parts_constant)::kValue;
      const int64_t tiles = (shape.kv_len + Blocks::kKeys - 1) / Blocks::kKeys;
      launch(on, shape.batch * shape.kv_heads * tiles, dim3(Blocks::kWarps * kWarp),
             KeyBlockMemory<columns, parts>::kBytes, async_backward_keys_kernel<T, columns, parts>, params);
    };
    const auto launch_queries = [&] {
      using Queries = AsyncBackwardQueries<columns>;
      const int64_t tiles = (shape.q_len + Queries::kQueries - 1) / Queries::kQueries;
      launch(on, shape.batch * shape.heads * tiles, dim3(Queries::kWarps * kWarp), kAsyncBackwardQueriesBytes<columns>,
             async_backward_queries_kernel<T, columns>, params);
    };
    if constexpr (Blocks::kSplit) {
      launch_keys(Constant<kDv>{});
      launch_keys(Constant<kDk>{});
      launch_queries();
    } else if (params.dq_sum == nullptr) {
      launch_keys(Constant<kDk | kDv>{});
      launch_queries();
    } else {
      launch_keys(Constant<kDk | kDv | kDq>{});
      const int64_t chunks = rows * (columns / kChunk);
      launch(on, (chunks + kElementwiseThreads - 1) / kElementwiseThreads, dim3(kElementwiseThreads), 0,
             async_backward_convert_kernel<T, columns>, params);
    }
  });
}

extern template void launch_async_backward<__half>(const Tensor&, const BackwardParams<__half>&);
extern template void launch_async_backward<__nv_bfloat16>(const Tensor&, const BackwardParams<__nv_bfloat16>&);

}  // namespace attn

// Launches the backward kernels for one element type, dQ by additions where `dq_sum` is given. Each type is a source
// file of its own, compiled beside the other.
#pragma once

#include "async_backward.h"
#include "tensor_core_arguments.h"

namespace attn {

template <typename T>
void launch_async_backward_prepare(const Tensor& on, const BackwardParams<T>& params) {
  const int64_t rows = params.shape.batch * params.shape.heads * params.padded;
  launch(on, rows / kRowsABlock, dim3(kElementwiseThreads), 0, async_backward_prepare_kernel<T>, params);
}

template <typename T, typename Blocks, int parts>
void launch_async_backward_keys(const Tensor& on, const BackwardParams<T>& params) {
  const int64_t tiles = (params.shape.kv_len + Blocks::kKeys - 1) / Blocks::kKeys;
  launch(on, params.shape.batch * params.shape.kv_heads * tiles, dim3(Blocks::kWarps * kWarp),
         KeyBlockMemory<Blocks, parts>::kBytes, async_backward_keys_kernel<T, Blocks, parts>, params);
}

template <typename T, typename Tiles>
void launch_async_backward_queries(const Tensor& on, const BackwardParams<T>& params) {
  const int64_t tiles = (params.shape.q_len + Tiles::kQueries - 1) / Tiles::kQueries;
  launch(on, params.shape.batch * params.shape.heads * tiles, dim3(Tiles::kWarps * kWarp),
         kAsyncBackwardQueriesBytes<Tiles>, async_backward_queries_kernel<T, Tiles>, params);
}

template <typename T, int columns>
void launch_async_backward_convert(const Tensor& on, const BackwardParams<T>& params) {
  const int64_t rows = params.shape.batch * params.shape.heads * params.padded, threads = rows / 2 * (columns / kChunk);
  launch(on, (threads + kElementwiseThreads - 1) / kElementwiseThreads, dim3(kElementwiseThreads), 0,
         async_backward_convert_kernel<T, columns>, params);
}

template <typename T>
void launch_async_backward(const Tensor& on, const BackwardParams<T>& params) {
  launch_async_backward_prepare(on, params);
  with_tile_columns(params.shape.head_dim, [&](auto constant) {
    constexpr int columns = decltype(constant)::kValue;
    using Apart = AsyncBackwardApart<columns>;
    using Queries = AsyncBackwardQueries<columns>;
    if constexpr (Apart::kSplit) {
      launch_async_backward_keys<T, Apart, kDv>(on, params);
      launch_async_backward_keys<T, Apart, kDk>(on, params);
      launch_async_backward_queries<T, Queries>(on, params);
    } else if (params.dq_sum == nullptr) {
      launch_async_backward_keys<T, Apart, kDk | kDv>(on, params);
      launch_async_backward_queries<T, Queries>(on, params);
    } else {
      launch_async_backward_keys<T, AsyncBackward<columns>, kDk | kDv | kDq>(on, params);
      launch_async_backward_convert<T, columns>(on, params);
    }
  });
}

extern template void launch_async_backward<__half>(const Tensor&, const BackwardParams<__half>&);
extern template void launch_async_backward<__nv_bfloat16>(const Tensor&, const BackwardParams<__nv_bfloat16>&);

}  // namespace attn

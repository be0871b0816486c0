// The backward kernels of tiled-ws and their launch; ws_backward.cu opens with what they do and why.
#pragma once

#include "../cuda/backward_rows.h"
#include "backward_keys.h"
#include "forward_launch.h"
#include "roles.h"

namespace attn {

template <typename T>
__global__ void __launch_bounds__(kElementwiseThreads) ws_backward_prepare_kernel(BackwardParams<T> p) {
  prepare_rows(p);
}
template <typename T, int columns>
__global__ void __launch_bounds__(kElementwiseThreads) ws_backward_convert_kernel(BackwardParams<T> p) {
  convert_dq<T, columns>(p);
}

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kSpecialisedThreads<Tiles>, 1)
    ws_backward_keys_kernel(const __grid_constant__ HopperBackwardParams p) {
  using Shares = Registers<Tiles::kWarpgroups>;
  const BackwardBlock<Tiles> block(p);
  block.make_barriers();
  const int group = warpgroup();
  if (group == 0) {
    shrink_registers<Shares::kCopying>();
    if (threadIdx.x == 0) block.load();
  } else {
    grow_registers<Shares::kComputing>();
    BackwardKeys<T, Tiles>(block, group - 1).visit_queries();
  }
}

// Call body(Constant<columns>{}) with the narrower tile that holds the head dimension.
template <typename Body>
void with_key_columns(int64_t head_dim, const Body& body) {
  if (head_dim <= 64) return body(Constant<64>{});
  return body(Constant<kMostHopperBackwardColumns>{});
}

// `params` and `hopper` agree; the sums of dQ are zero, and so are the counts where there are any.
template <typename T, typename Tiles>
void launch_ws_backward(const Tensor& on, const BackwardParams<T>& params, const HopperBackwardParams& hopper) {
  const Shape& shape = params.shape;
  const int64_t rows = shape.batch * shape.heads * params.padded;
  launch(on, rows / kRowsABlock, dim3(kElementwiseThreads), 0, ws_backward_prepare_kernel<T>, params);
  const int64_t tiles = (shape.kv_len + Tiles::kKeys - 1) / Tiles::kKeys;
  launch(on, shape.batch * shape.kv_heads * tiles, dim3(kSpecialisedThreads<Tiles>), BackwardBlock<Tiles>::kBytes,
         ws_backward_keys_kernel<T, Tiles>, hopper);
  const int64_t threads = rows / 2 * (Tiles::kColumns / kChunk);
  launch(on, (threads + kElementwiseThreads - 1) / kElementwiseThreads, dim3(kElementwiseThreads), 0,
         ws_backward_convert_kernel<T, Tiles::kColumns>, params);
}

}  // namespace attn

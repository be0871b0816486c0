// The backward kernels of tiled-ws and their launch; ws_backward.cu opens with what they do and why.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "../cuda/backward_rows.h"
#include "backward_keys.h"
#include "forward_launch.h"
#include "roles.h"

namespace attn {

// What is zero before the products: the sums of dQ, and counts.
struct Zeros {
  int* counts;
  int64_t how_many;
};

// The first kernel ends with the first heads, with which the second begins, and the third begins with the last, with
// which the second ended: these are in the L2 cache.
__device__ inline int block_from_the_end() {
  return static_cast<int>(gridDim.x - 1 - blockIdx.x);
}
template <typename T, int columns>
__global__ void __launch_bounds__(kElementwiseThreads) ws_backward_prepare_kernel(BackwardParams<T> p, Zeros zeros) {
  const int block = block_from_the_end(), thread = static_cast<int>(threadIdx.x);
  float4* const sums = reinterpret_cast<float4*>(p.dq_sum) + static_cast<int64_t>(block) * (kRowsABlock * columns / 4);
#pragma unroll
  for (int i = 0; i < kRowsABlock * columns / 4; i += kElementwiseThreads) sums[i + thread] = float4{0, 0, 0, 0};
  const int64_t index = static_cast<int64_t>(block) * kElementwiseThreads + thread;
  if (index < zeros.how_many) zeros.counts[index] = 0;
  prepare_rows(p, block);
}
template <typename T, int columns>
__global__ void __launch_bounds__(kElementwiseThreads) ws_backward_convert_kernel(BackwardParams<T> p) {
  convert_dq<T, columns>(p, block_from_the_end());
}

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kSpecialisedThreads<Tiles>, 1)
    ws_backward_keys_kernel(const __grid_constant__ HopperBackwardParams<T> p) {
  using Shares = Registers<Tiles::kWarpgroups>;
  BackwardBlock<T, Tiles> block(p);
  block.make_barriers();
  const int group = warpgroup();
  if (group == 0) {
    shrink_registers<Shares::kCopying>();
    if (threadIdx.x == 0) block.load();
  } else {
    grow_registers<Shares::kComputing>();
    BackwardKeys<T, Tiles>(block, group - 1).compute();
  }
}

// Call body(Constant<columns>{}) with the narrower tile that holds the head dimension.
template <typename Body>
void with_key_columns(int64_t head_dim, const Body& body) {
  if (head_dim <= 64) return body(Constant<64>{});
  return body(Constant<kMostHopperBackwardColumns>{});
}

// `params` and `hopper` agree.
template <typename T, typename Tiles>
void launch_ws_backward(const Tensor& on, const BackwardParams<T>& params, const HopperBackwardParams<T>& hopper,
                        const Zeros& zeros) {
  const Shape& shape = params.shape;
  const int64_t rows = shape.batch * shape.heads * params.padded;
  launch(on, rows / kRowsABlock, dim3(kElementwiseThreads), 0, ws_backward_prepare_kernel<T, Tiles::kColumns>, params,
         zeros);
  const int64_t key_tiles = shape.batch * shape.kv_heads * ((shape.kv_len + Tiles::kKeys - 1) / Tiles::kKeys);
  launch(on, std::min<int64_t>(key_tiles, device_of(on).multiprocessors), dim3(kSpecialisedThreads<Tiles>),
         BackwardBlock<T, Tiles>::kBytes, ws_backward_keys_kernel<T, Tiles>, hopper);
  const int64_t threads = rows / 2 * (Tiles::kColumns / kChunk);
  launch(on, (threads + kElementwiseThreads - 1) / kElementwiseThreads, dim3(kElementwiseThreads), 0,
         ws_backward_convert_kernel<T, Tiles::kColumns>, params);
}

// Returns (dq, dk, dv).
inline std::tuple<Tensor, Tensor, Tensor> hopper_backward(bool deterministic, const Tensor& dout_given,
                                                          const Tensor& q_given, const Tensor& k_given,
                                                          const Tensor& v_given, const Tensor& out_given,
                                                          const Tensor& lse, const std::optional<Tensor>& dlse,
                                                          double scale, int64_t low, int64_t high) {
  const Shape shape = check_inputs(q_given, k_given, v_given, scale);
  check_tensor_core_inputs(q_given, k_given);
  ATTN_CHECK(shape.head_dim <= kMostHopperBackwardColumns, "head_dim must be at most ", kMostHopperBackwardColumns,
             ", got ", shape.head_dim);
  check_saved(q_given, dout_given, out_given, lse);
  if (dlse) check_saved(q_given, dout_given, out_given, *dlse);
  check_hopper(q_given);
  const DeviceGuard guard(q_given.get_device_index());
  bind_context(q_given.get_device_index());
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
      Tensor row_numbers = empty_floats(q, 2 * rows);
      Tensor dq_sum = empty_floats(q, rows * Tiles::kColumns);
      const int64_t counts = 1 + (deterministic ? shape.batch * shape.heads * tiles : 0);
      Tensor counted = empty_strided<1>(q, {counts}, {1}, aoti_torch_dtype_int32());
      int* const fetched = static_cast<int*>(counted.data_ptr());
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
      const HopperBackwardParams<T> hopper{map_of(q, Tiles::kQueries),
                                           map_of(k, Tiles::kKeys),
                                           map_of(v, Tiles::kKeys),
                                           map_of(dout, Tiles::kQueries),
                                           params.dk,
                                           params.dv,
                                           shape,
                                           params.lse_log2,
                                           params.delta,
                                           params.dq_sum,
                                           fetched,
                                           deterministic ? fetched + 1 : nullptr,
                                           params.padded,
                                           params.scale,
                                           scale_log2,
                                           TileBand::of(band)};
      launch_ws_backward<T, Tiles>(q, params, hopper, {fetched, counts});
    });
  });
  return {dq, dk, dv};
}

}  // namespace attn

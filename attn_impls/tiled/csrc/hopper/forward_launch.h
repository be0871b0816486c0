// From tensors to a running Hopper kernel: checks, tensor maps, launch.
#pragma once

#include <cmath>
#include <tuple>

#include "../cuda/tensor_core_arguments.h"
#include "forward_block.h"
#include "tensor_map.h"

namespace attn {

inline void check_hopper(const Tensor& on) {
  int major = 0, minor = 0;
  const int device = on.get_device_index();
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the device");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the device");
  STD_TORCH_CHECK(major == 9 && minor == 0, "this kernel needs a device of compute capability 9.0 (Hopper), not ",
                  major, ".", minor);
}

inline int multiprocessors_of(const Tensor& on) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, on.get_device_index()),
             "asking for the device");
  return count;
}

// The tensor, or a copy of it where the copy engine does not take it: rows that begin at no multiple of 16 bytes, or
// that share memory, as those of an expanded tensor.
inline Tensor with_mappable_rows(const Tensor& tensor) {
  bool shared = false;
  for (int64_t dim = 0; dim < 3; ++dim) shared |= tensor.size(dim) > 1 && tensor.stride(dim) == 0;
  if (!shared) return with_aligned_rows(tensor);
  Tensor copy = torch::stable::new_empty(tensor, {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)});
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline CUtensorMap map_of(const Tensor& tensor, int box_rows) {
  CUtensorMap map;
  const CUtensorMapDataType type =
      tensor.scalar_type() == ScalarType::Half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const char* failed = make_tensor_map(&map,
                                       {tensor.data_ptr(), type, tensor.size(0), tensor.size(1), tensor.size(2),
                                        tensor.size(3), tensor.stride(0), tensor.stride(1), tensor.stride(2)},
                                       box_rows);
  STD_TORCH_CHECK(failed == nullptr, failed, ": ", sizes_of(tensor));
  return map;
}

// Call body(Constant<columns>{}) with the narrowest tile of whole slabs that holds the head dimension.
template <typename Body>
void with_slab_columns(int64_t head_dim, const Body& body) {
  if (head_dim <= 64) return body(Constant<64>{});
  if (head_dim <= 128) return body(Constant<128>{});
  return body(Constant<256>{});
}

// Check the inputs, make the outputs, and call body(shape, q, k, v, out, lse) unless there is nothing to compute, with
// inputs that the copy engine takes. Returns (out, lse).
template <typename Body>
std::tuple<Tensor, Tensor> with_hopper_tensors(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                               const Body& body) {
  const Shape shape = check_inputs(q, k, v, scale);
  check_tensor_core_inputs(q, k);
  check_hopper(q);
  Tensor out = empty_in_order_of(q);
  Tensor lse = empty_lse(q);
  // No map is as small as an empty tensor.
  if (shape.batch != 0) body(shape, with_mappable_rows(q), with_mappable_rows(k), with_mappable_rows(v), out, lse);
  return {out, lse};
}

// Run kernel_of(T{}, Tiles<columns>{}), with `more_threads` than those that compute. Returns (out, lse).
template <template <int> class Tiles, typename Kernels>
std::tuple<Tensor, Tensor> run_rung_forward(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                            double scale, int64_t low, int64_t high, int more_threads,
                                            const Kernels& kernel_of) {
  const auto run = [&](const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse) {
    with_half_type(q, [&](auto element) {
      with_slab_columns(shape.head_dim, [&](auto columns) {
        using Sizes = Tiles<decltype(columns)::kValue>;
        const HopperForwardParams params{map_of(q, Sizes::kQueries),
                                         map_of(k, Sizes::kKeys),
                                         map_of(v, Sizes::kKeys),
                                         map_of(out, kPiece),
                                         shape,
                                         static_cast<float*>(lse.data_ptr()),
                                         static_cast<float>(scale * M_LOG2E),
                                         TileBand::of(Band::from_diagonals(low, high))};
        const int64_t tiles = (shape.q_len + Sizes::kQueries - 1) / Sizes::kQueries;
        launch(q, shape.batch * shape.heads * tiles, dim3(Sizes::kWarpgroups * kWarpgroup + more_threads),
               ForwardBlock<Sizes>::kBytes, kernel_of(element, Sizes{}), params);
      });
    });
  };
  return with_hopper_tensors(q_given, k_given, v_given, scale, run);
}

}  // namespace attn

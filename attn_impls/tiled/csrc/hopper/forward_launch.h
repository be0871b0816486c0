// From tensors to a running Hopper kernel: checks, tensor maps, launch.
#pragma once

#include <cmath>
#include <map>
#include <mutex>
#include <tuple>

#include "../cuda/tensor_core_arguments.h"
#include "forward_block.h"
#include "tensor_map.h"

namespace attn {

// What a launch wants to know of a device.
struct Device {
  int major, minor;  // compute capability
  int multiprocessors;
};

namespace {  // what is remembered belongs to one source file, and to no other library

// Asks once for each device.
inline Device device_of(const Tensor& on) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const int number = on.get_device_index();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(number);
  if (found != known.end()) return found->second;
  const auto ask = [number](cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, attribute, number), "asking for the device");
    return value;
  };
  return known[number] = {ask(cudaDevAttrComputeCapabilityMajor), ask(cudaDevAttrComputeCapabilityMinor),
                          ask(cudaDevAttrMultiProcessorCount)};
}

}  // namespace

inline void check_hopper(const Tensor& on) {
  const Device device = device_of(on);
  ATTN_CHECK(device.major == 9 && device.minor == 0,
             "this kernel needs a device of compute capability 9.0 (Hopper), not ", device.major, ".", device.minor);
}

// Make the context of the current device, `device`, that of the calling thread. The runtime does so at a thread's first
// allocation or launch. The driver's function that makes maps may come before: autograd's thread begins without one
// (github.com/pytorch/pytorch/issues/124565) and allocates nothing where PyTorch has kept enough memory; without a
// context the function crashes.
inline void bind_context(int device) {
  check_cuda(cudaSetDevice(device), "making the device current");
}

// The tensor, or a copy of it where TMA does not take it: rows that begin at no multiple of 16 bytes, or that share
// memory, as those of an expanded tensor.
inline Tensor with_mappable_rows(const Tensor& tensor) {
  bool shared = false;
  for (int64_t dim = 0; dim < 3; ++dim) shared |= tensor.size(dim) > 1 && tensor.stride(dim) == 0;
  if (!shared) return with_aligned_rows(tensor);
  Tensor copy = empty_in_order_of(tensor);
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
  ATTN_CHECK(failed == nullptr, failed, ": ", sizes_of(tensor));
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
// inputs that TMA takes. Returns (out, lse).
template <typename Body>
std::tuple<Tensor, Tensor> with_hopper_tensors(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                               const Body& body) {
  const Shape shape = check_inputs(q, k, v, scale);
  check_tensor_core_inputs(q, k);
  check_hopper(q);
  const DeviceGuard guard(q.get_device_index());
  bind_context(q.get_device_index());
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

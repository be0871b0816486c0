// From tensors to a running kernel: dtype, device, stream, launch, and the check that the launch was accepted.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "../arguments.h"
#include "element.h"

namespace attn {

using torch::stable::accelerator::DeviceGuard;

constexpr int64_t kSharedBytesWithoutAsking = 48 * 1024;  // of a block

inline void check_cuda(cudaError_t status, const char* what) {
  ATTN_CHECK(status == cudaSuccess, what, " failed: ", cudaGetErrorString(status));
}

// The stream that PyTorch is using on `device`.
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  ATTN_CALL(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

namespace {  // what is remembered belongs to one source file, and to no other library

// Let a block of `kernel` have `bytes` of shared memory on the current device, `device`. The runtime is asked once.
inline void allow_shared_memory(const void* kernel, int32_t device, int64_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int32_t>, int64_t> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "asking for shared memory");
  most = bytes;
}

}  // namespace

// Queue kernel(args...) with `blocks` thread blocks on the current stream of the device of `on`; waits for nothing.
template <typename... Args>
void launch(const Tensor& on, int64_t blocks, dim3 threads, int64_t shared_bytes, void (*kernel)(Args...),
            Args... args) {
  if (blocks == 0) return;  // an empty batch; CUDA refuses an empty grid
  ATTN_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "the problem needs ", blocks,
             " thread blocks, more than a CUDA grid can have");
  const int32_t device = on.get_device_index();
  const DeviceGuard guard(device);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  if (shared_bytes > kSharedBytesWithoutAsking) {
    allow_shared_memory(reinterpret_cast<const void*>(kernel), device, shared_bytes);
  }
  config.stream = current_stream(device);
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::move(args)...), "the kernel launch");
}

// Call body(T{}) with the CUDA type of the elements of `tensor`, which check_inputs has checked.
template <typename Body>
void with_device_type(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return body(__nv_bfloat16{});
    case ScalarType::Half:
      return body(__half{});
    default:
      return body(float{});
  }
}

// The same for kernels that take 16-bit elements only; the caller has refused float.
template <typename Body>
void with_half_type(const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == ScalarType::BFloat16) return body(__nv_bfloat16{});
  return body(__half{});
}

}  // namespace attn

// In place of csrc/hopper/tensor_map.h, and of the parts of the CUDA runtime that the Hopper launches ask: a map is
// what it was made of, and the device is a Hopper of five multiprocessors.
#pragma once

#include <cstdlib>

#include "tma.h"

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor = 9,
  cudaDevAttrComputeCapabilityMinor = 0,
  cudaDevAttrMultiProcessorCount = 5
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone };
inline const cudaStream_t cudaStreamPerThread = reinterpret_cast<cudaStream_t>(2);
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute;
  return cudaSuccess;
}
inline thread_local bool has_context = false;
inline cudaError_t cudaSetDevice(int) {
  has_context = true;
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) {
  return cudaSuccess;
}
inline cudaError_t cudaGetSymbolAddress(void** address, int* symbol) {
  *address = symbol;
  return cudaSuccess;
}

namespace attn {

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline void check_cuda(cudaError_t, const char*) {}
// With the variable set, that of each thread: a name for many streams, for which no counter can be kept.
inline cudaStream_t current_stream(int) {
  return std::getenv("EMULATED_STREAM_PER_THREAD") != nullptr ? cudaStreamPerThread : nullptr;
}

enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };

struct MappedTensor {
  const void* data;
  CUtensorMapDataType type;
  int64_t batch, heads, rows, head_dim;
  int64_t batch_stride, head_stride, row_stride;
};
inline const char* make_tensor_map(CUtensorMap* map, const MappedTensor& tensor, int box_rows) {
  if (!has_context) return "the driver crashes in a thread without a context";
  const int64_t strides[] = {tensor.batch_stride, tensor.head_stride, tensor.row_stride};
  const int64_t lengths[] = {tensor.batch, tensor.heads, tensor.rows};
  for (int i = 0; i < 3; ++i) {
    if (lengths[i] > 1 && (strides[i] <= 0 || strides[i] % 8 != 0)) return "the map refuses these strides";
  }
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0 || box_rows > 256) return "the map refuses the tensor";
  *map = {static_cast<const uint16_t*>(tensor.data),
          {tensor.head_dim, tensor.rows, tensor.heads, tensor.batch},
          {tensor.row_stride, tensor.head_stride, tensor.batch_stride},
          box_rows};
  return nullptr;
}

}  // namespace attn

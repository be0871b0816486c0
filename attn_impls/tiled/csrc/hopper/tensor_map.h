// Tensor maps, on the host: what TMA must know of a tensor to find a box of it.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "slab_tile.h"

namespace attn {

// A tensor [batch, heads, rows, head_dim] of 16-bit numbers; strides count elements.
struct MappedTensor {
  const void* data;
  CUtensorMapDataType type;
  int64_t batch, heads, rows, head_dim;
  int64_t batch_stride, head_stride, row_stride;
};

// Describe boxes of `box_rows` rows and one slab's columns, to be swizzled. Data, rows and strides must be multiples of
// 16 bytes, and the strides of dimensions longer than 1 positive. Heads and batches are dimensions of their own, so
// that rows past the end of a head are outside, and not the next head's first. Returns what failed, or null.
inline const char* make_tensor_map(CUtensorMap* map, const MappedTensor& tensor, int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  // From the driver through the runtime, so that nothing links against libcuda, which machines without a GPU lack.
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
    return error == cudaSuccess && status == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled";
  // The stride of a dimension of length 1 means nothing and may be any number; a row's length will do in its place.
  const auto bytes = [&](int64_t length, int64_t stride) {
    return static_cast<cuuint64_t>((length > 1 ? stride : tensor.head_dim) * 2);
  };
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(tensor.head_dim), static_cast<cuuint64_t>(tensor.rows),
                              static_cast<cuuint64_t>(tensor.heads), static_cast<cuuint64_t>(tensor.batch)};
  const cuuint64_t strides[] = {bytes(tensor.rows, tensor.row_stride), bytes(tensor.heads, tensor.head_stride),
                                bytes(tensor.batch, tensor.batch_stride)};
  const cuuint32_t box[] = {kSlabColumns, static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUresult made = encode(map, tensor.type, 4, const_cast<void*>(tensor.data), sizes, strides, box, steps,
                               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return made == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refused the tensor";
}

}  // namespace attn

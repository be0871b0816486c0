// The dtypes that kernels read and write, and their conversion to the fp32 that they compute with.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace attn {

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename T>
__device__ T from_float(float x);  // rounds to the nearest, ties to even

template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Four numbers in one load instruction; `from` must be aligned to their size.
__device__ inline float4 load_four(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
template <typename T>
__device__ float4 load_four(const T* from) {
  struct alignas(4 * sizeof(T)) Four {
    T x[4];
  };
  const Four four = *reinterpret_cast<const Four*>(from);
  return {to_float(four.x[0]), to_float(four.x[1]), to_float(four.x[2]), to_float(four.x[3])};
}

// Whether rows of `head_dim` numbers, `row_stride` apart, can be read with load_four throughout.
template <typename T>
__device__ bool loads_of_four(const T* first, int64_t row_stride, int head_dim) {
  return reinterpret_cast<uintptr_t>(first) % (4 * sizeof(T)) == 0 && row_stride % 4 == 0 && head_dim % 4 == 0;
}

}  // namespace attn

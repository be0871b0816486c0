// The shared memory that a launch asked for.
#pragma once

namespace attn {

// Of 16-byte alignment, the same for all threads of a block; launch() is told its size.
__device__ inline float* shared_memory() {
  extern __shared__ float4 dynamic_shared_memory[];
  return reinterpret_cast<float*>(dynamic_shared_memory);
}

}  // namespace attn

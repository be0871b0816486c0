// In place of csrc/cuda/launch.h: a launch runs its blocks one after the other, to the end.
#pragma once

#include "../arguments.h"

namespace attn {

template <typename... Args>
void launch(const Tensor&, int64_t blocks, dim3 threads, int64_t bytes, void (*kernel)(Args...), Args... args) {
  STD_TORCH_CHECK(threads.x % emulator::kLanes == 0 && threads.x <= emulator::kMostThreads && threads.y == 1);
  STD_TORCH_CHECK(bytes <= emulator::kSharedBytes, "a block needs ", bytes, " bytes of shared memory");
  emulator::failure.clear();
  emulator::body = [=] { kernel(args...); };
  gridDim = dim3{unsigned(blocks)};
  for (int64_t block = 0; block < blocks && emulator::failure.empty(); ++block) {
    blockIdx = dim3{unsigned(block)};
    emulator::run_block(static_cast<int>(threads.x), bytes);
  }
  STD_TORCH_CHECK(emulator::failure.empty(), emulator::failure);
}

template <typename Body>
void with_half_type(const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == ScalarType::BFloat16) return body(__nv_bfloat16{});
  return body(__half{});
}

}  // namespace attn

// Scratch memory of a CPU kernel: one tensor, so that PyTorch's memory profiler sees it, cut into fp32 tiles.
#pragma once

#include <cstdint>

#include "../arguments.h"

namespace attn {

class Workspace {
 public:
  // Room for `slots` equal shares of `floats` each.
  Workspace(const Tensor& like, int64_t slots, int64_t floats)
      : share_(round_up(floats)),
        memory_(empty_floats(like, slots * share_ + kAlignment)),
        base_(align(static_cast<float*>(memory_.data_ptr()))) {}

  float* share(int64_t slot) const { return base_ + slot * share_; }

  // Floats that a tile of this many occupies, so that the next one starts on a cache line.
  static int64_t round_up(int64_t floats) { return (floats + kAlignment - 1) / kAlignment * kAlignment; }

 private:
  static constexpr int64_t kAlignment = 16;  // floats in a cache line of 64 bytes

  static float* align(float* address) {
    constexpr uintptr_t kBytes = kAlignment * sizeof(float);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(address) + kBytes - 1) / kBytes * kBytes);
  }

  int64_t share_;
  Tensor memory_;
  float* base_;
};

// Hands out consecutive tiles of one share.
class Cutter {
 public:
  explicit Cutter(float* start) : next_(start) {}

  float* take(int64_t floats) {
    float* tile = next_;
    next_ += Workspace::round_up(floats);
    return tile;
  }

 private:
  float* next_;
};

}  // namespace attn

// What a forward kernel is given, by value: pointers, strides, sizes. Offsets are 64-bit throughout.
#pragma once

#include <cstdint>

#include "../arguments.h"
#include "../band.h"

namespace attn {

constexpr int kMostHeadDim = 128;  // of the fp32 rungs

template <typename T>
struct ForwardParams {
  Shape shape;
  View<const T> q, k, v;
  View<T> out;
  float* lse;        // [batch, heads, q_len], contiguous
  float scale_log2;  // softmax scale * log2(e): scores are in units of log2, because exp2 is what the hardware has
  Band band;
};

}  // namespace attn

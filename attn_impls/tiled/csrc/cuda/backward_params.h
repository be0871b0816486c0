// What the backward kernels are given, by value.
#pragma once

#include <cstdint>

#include "params.h"

namespace attn {

constexpr int kPaddedRows = 64;  // rows of the workspace are a multiple of it, which every tile of queries divides

template <typename T>
struct BackwardParams {
  Shape shape;
  View<const T> q, k, v, out, dout;
  View<T> dq, dk, dv;
  const float* lse;   // [batch, heads, q_len], natural logarithm
  const float* dlse;  // the same, or null
  // Workspace, `padded` rows a head. For rows that saw no key, and for those past the end, `lse_log2` is +inf, so that
  // their weights exp2(score - inf) are 0 without a test.
  float* lse_log2;  // [batch, heads, padded]
  float* delta;     // [batch, heads, padded]: the sum of dout * out over a row, less dlse
  float*
      dq_sum;  // [batch, heads, padded / 16, columns / 8, 32 lanes, 4]: C fragments, or null where dQ is not added up
  int padded;
  float scale, scale_log2;
  Band band;
};

}  // namespace attn

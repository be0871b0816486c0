// Between tensors of any dtype and the fp32 tiles that tiled-cpu computes with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../arguments.h"
#include "../band.h"
#include "vector.h"

namespace attn {

inline void widen(const float* from, float* to, int64_t count) {
  std::copy(from, from + count, to);
}

inline void widen(const BFloat16* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);  // a shift; compilers vectorise it
}

inline void widen(const Half* from, float* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
#endif
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

// Have rows [begin, end) of one head come to the L2 cache, all at once, to be read or written: in the order
// [batch, seq, heads, head_dim] they lie too far apart for the hardware to foresee the next one.
template <typename T>
void prefetch_rows(View<T> rows, int64_t batch, int64_t head, int64_t begin, int64_t end, int64_t head_dim) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t d = 0; d < head_dim; d += kLine) __builtin_prefetch(rows.row(batch, head, i) + d, 0, 2);
  }
}

// Rows of fp32 numbers, `stride` floats apart; each can be read up to head_dim rounded up to whole vectors.
struct Rows {
  const float* data;
  int64_t stride;
};

// Rows [begin, end) of one head as fp32. An fp32 tensor of whole vectors is used where it lies; anything else is
// widened into `tile`, with zeros after head_dim.
template <typename T>
Rows widen_rows(View<T> from, int64_t batch, int64_t head, int64_t begin, int64_t end, int64_t head_dim, float* tile) {
  if constexpr (std::is_same_v<T, float>) {
    if (head_dim % kLanes == 0) return {from.row(batch, head, begin), from.row_stride};
  }
  const int64_t width = round_up_to_lanes(head_dim);
  for (int64_t i = begin; i < end; ++i, tile += width) {
    widen(from.row(batch, head, i), tile, head_dim);
    std::fill(tile + head_dim, tile + width, 0.0f);
  }
  return {tile - (end - begin) * width, width};
}

// to[d, i] = rows[i, d], with zeros for count <= i < width.
inline void transpose(Rows rows, int64_t count, int64_t depth, float* to, int64_t width) {
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows.data + i * rows.stride;
    for (int64_t d = 0; d < depth; ++d) to[d * width + i] = row[d];
  }
  for (int64_t d = 0; d < depth; ++d) std::fill(to + d * width + count, to + (d + 1) * width, 0.0f);
}

// Round one row to the tensor's dtype, the only rounding that a result sees.
template <typename T>
void narrow(const float* row, float factor, int64_t head_dim, T* to) {
  for (int64_t d = 0; d < head_dim; ++d) to[d] = static_cast<T>(row[d] * factor);
}

// Hide the pairs of a transposed tile of scores [keys, width], first query q0 and first key k0, outside the band.
inline void mask_scores(Band band, int64_t q0, int64_t k0, int64_t keys, int64_t queries, float* scores,
                        int64_t width) {
  for (int64_t j = 0; j < keys; ++j) {
    // Key k0 + j is seen by the queries q0 + i with first <= i < end.
    const int64_t first = std::clamp<int64_t>(k0 + j - band.high - q0, 0, queries);
    const int64_t end = std::clamp<int64_t>(k0 + j - band.low - q0 + 1, first, queries);
    float* row = scores + j * width;
    std::fill(row, row + first, kMinusInfinity);
    std::fill(row + end, row + queries, kMinusInfinity);
  }
}

}  // namespace attn

// Tiles of bf16 numbers in pairs, as vdpbf16ps multiplies them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "matmul.h"
#include "tile_io.h"
#include "vector.h"

#if defined(__AVX512BF16__)
namespace attn {

constexpr int64_t kScoreColumns = 2 * kLanes;  // queries of a block of scores

// Rows [begin, end) of one head as rows of pairs along head_dim. Where they lie if head_dim is even, else copied into
// `tile` with a zero behind the last number.
inline Rows pairs_of_rows(View<BFloat16> from, int64_t batch, int64_t head, int64_t begin, int64_t end,
                          int64_t head_dim, float* tile) {
  if (head_dim % 2 == 0 && from.row_stride % 2 == 0) {
    return {reinterpret_cast<const float*>(from.row(batch, head, begin)), from.row_stride / 2};
  }
  const int64_t stride = (head_dim + 1) / 2;
  auto* to = reinterpret_cast<BFloat16*>(tile);
  for (int64_t i = begin; i < end; ++i, to += 2 * stride) {
    to[2 * stride - 1] = BFloat16(0.0f);
    std::memcpy(to, from.row(batch, head, i), head_dim * sizeof(BFloat16));
  }
  return {tile, stride};
}

// Up to 32 numbers, zeros behind them.
inline Vec load_numbers(const BFloat16* from, int64_t count) {
  const uint32_t kept = count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1;
  return (Vec)_mm512_maskz_loadu_epi16(kept, from);
}

// 32 numbers in bf16, in order.
inline Vec narrow_to_pairs(Vec first, Vec second) {
  return (Vec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

inline float dot_of_pairs(const BFloat16* a, const BFloat16* b, int64_t count) {
  Vec sum{};
  for (int64_t d = 0; d < count; d += 32) {
    sum = multiply_add_pairs(load_numbers(a + d, count - d), load_numbers(b + d, count - d), sum);
  }
  return _mm512_reduce_add_ps((__m512)sum);
}

// The pairs (low[i], high[i]) of 16 numbers each, from number 16 kHalf on.
template <int kHalf>
Vec interleave(Vec low, Vec high) {
  alignas(64) static constexpr auto kIndex = [] {
    std::array<int16_t, 32> index{};
    for (int i = 0; i < 32; ++i) index[i] = 16 * kHalf + i / 2 + 32 * (i % 2);
    return index;
  }();
  return (Vec)_mm512_permutex2var_epi16((__m512i)low, _mm512_load_si512(kIndex.data()), (__m512i)high);
}

// Swap the off-diagonal quarters of every 2 kStep x 2 kStep square; with kStep = 8, 4, 2, 1 this transposes.
template <int kStep>
void swap_quarters(Vec (&rows)[kLanes]) {
  alignas(64) static constexpr auto kIndex = [] {
    std::array<std::array<int32_t, 16>, 2> index{};
    for (int i = 0; i < 16; ++i) {
      index[0][i] = i & kStep ? 16 + i - kStep : i;
      index[1][i] = i & kStep ? 16 + i : i + kStep;
    }
    return index;
  }();
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    if (r & kStep) continue;
    const __m512i above = (__m512i)rows[r], below = (__m512i)rows[r + kStep];
    rows[r] = (Vec)_mm512_permutex2var_epi32(above, _mm512_load_si512(kIndex[0].data()), below);
    rows[r + kStep] = (Vec)_mm512_permutex2var_epi32(above, _mm512_load_si512(kIndex[1].data()), below);
  }
}

// Rows [begin, end) as the right factor of a sum over head_dim, in strips of kScoreColumns rows: [depth,
// kScoreColumns] each, of pairs along head_dim, with zeros beyond the last row.
inline void pack_columns(View<BFloat16> from, int64_t batch, int64_t head, int64_t begin, int64_t end, int64_t head_dim,
                         float* to) {
  const int64_t depth = (head_dim + 1) / 2;
  for (int64_t first = begin; first < end; first += kScoreColumns, to += depth * kScoreColumns) {
    for (int64_t column = 0; column < kScoreColumns; column += kLanes) {
      for (int64_t p0 = 0; p0 < depth; p0 += kLanes) {
        Vec square[kLanes];
        for (int64_t r = 0; r < kLanes; ++r) {
          const int64_t i = first + column + r;
          square[r] = i < end ? load_numbers(from.row(batch, head, i) + 2 * p0, head_dim - 2 * p0) : Vec{};
        }
        swap_quarters<8>(square);
        swap_quarters<4>(square);
        swap_quarters<2>(square);
        swap_quarters<1>(square);
        const int64_t pairs = std::min(kLanes, depth - p0);
        for (int64_t p = 0; p < pairs; ++p) store(to + (p0 + p) * kScoreColumns + column, square[p]);
      }
    }
  }
}

// Rows [begin, end) as the right factor of a sum over rows, in strips of kStrip columns: pairs of two rows, with zeros
// beyond the last row and behind head_dim.
inline void pack_rows(View<BFloat16> from, int64_t batch, int64_t head, int64_t begin, int64_t end, int64_t head_dim,
                      float* to) {
  for (int64_t d0 = 0; d0 < head_dim; d0 += kStrip) {
    for (int64_t i = begin; i < end; i += 2, to += kStrip) {
      for (int64_t column = 0; column < kStrip; column += 2 * kLanes) {
        const int64_t d = d0 + column;
        const Vec low = load_numbers(from.row(batch, head, i) + d, head_dim - d);
        const Vec high = i + 1 < end ? load_numbers(from.row(batch, head, i + 1) + d, head_dim - d) : Vec{};
        store(to + column, interleave<0>(low, high));
        store(to + column + kLanes, interleave<1>(low, high));
      }
    }
  }
}

}  // namespace attn
#endif

// P and dS of the backward pass in bf16, block by block from products of pairs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../band.h"
#include "pair_tiles.h"
#include "tile_io.h"
#include "vector.h"

#if defined(__AVX512BF16__)
namespace attn {

// 2^x for x <= 0 within 8e-5, a twentieth of what rounding to bf16 may change; 2^-126 for all x below -126. The
// polynomial is the minimax one of 2^f on [-1/2, 1/2]. As in exp(), adding 1.5 * 2^23 rounds to a whole number that
// stands in the low bits.
inline Vec exp2_for_bf16(Vec x) {
  const Vec rounder = splat(12582912.0f);
  const Vec within = (Vec)_mm512_max_ps((__m512)splat(-126.0f), (__m512)x);  // in this order NaN stays
  const Vec shifted = within + rounder;
  const Vec f = within - (shifted - rounder);
  Vec series = splat(5.5171667259e-02f);
  series = series * f + 2.4261112205e-01f;
  series = series * f + 6.9326098579e-01f;
  series = series * f + 9.9992807356e-01f;
  return (Vec)((VecInt)series + ((VecInt)shifted << 23));
}

// A tile of P = exp(scale K Q^T - lse) and dS = P (V dO^T - delta), keys by queries.
struct ScoreTile {
  Rows k, v;                 // pairs along head_dim
  const float *q, *dout;     // packed columns
  const float *lse, *delta;  // of each query
  int64_t depth;             // pairs a row
  float scale;
  Band band;  // query minus key
  // Results in bf16: two of [keys, width] with pairs along the queries, and dS once more with pairs along the keys,
  // [keys / 2, pair_stride].
  float *weights, *dscores, *dscore_pairs;
  int64_t width, pair_stride;

  void run(int64_t keys) const {
    for (int64_t i = 0; i < width; i += kScoreColumns) {
      int64_t j = 0;
      for (; j + kRows <= keys; j += kRows) block<kRows>(j, i);
      for (; j + 2 <= keys; j += 2) block<2>(j, i);
      if (j < keys) block<1>(j, i);
    }
  }

 private:
  static constexpr int kRows = 6;     // 6 x 2 vectors of S and as many of dP leave 8 of 32 registers
  static constexpr int kVectors = 2;  // of kScoreColumns queries

  // kR keys from j on by kScoreColumns queries from i on.
  template <int kR>
  void block(int64_t j, int64_t i) const {
    if (band.hides_tile(j, j + kR, i, i + kScoreColumns)) return clear<kR>(j, i);
    Vec score[kR][kVectors] = {}, dweight[kR][kVectors] = {};
    const float *key = k.data + j * k.stride, *value = v.data + j * v.stride;
    const float *query = q + i * depth, *dquery = dout + i * depth;
    for (int64_t p = 0; p < depth; ++p, query += kScoreColumns, dquery += kScoreColumns) {
      multiply_add<kR>(key + p, k.stride, query, score);
      multiply_add<kR>(value + p, v.stride, dquery, dweight);
    }
    if (band.shows_tile(j, j + kR, i, i + kScoreColumns)) {
      finish<kR, false>(j, i, score, dweight);
    } else {
      finish<kR, true>(j, i, score, dweight);
    }
  }

  template <int kR>
  static void multiply_add(const float* left, int64_t stride, const float* right, Vec (&sum)[kR][kVectors]) {
    const Vec columns[kVectors] = {load(right), load(right + kLanes)};
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Vec number = splat_pair(left + r * stride);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sum[r][n] = multiply_add_pairs(number, columns[n], sum[r][n]);
    }
  }

  // S and dP become P and dS, two keys at a time because these are the pairs that dQ is summed up over.
  template <int kR, bool kMasked>
  void finish(int64_t j, int64_t i, const Vec (&score)[kR][kVectors], const Vec (&dweight)[kR][kVectors]) const {
    constexpr float kLog2e = 1.44269504088896341f;
    const Vec factor = splat(scale * kLog2e);
    const Vec shift[kVectors] = {load(lse + i) * kLog2e, load(lse + i + kLanes) * kLog2e};
    const Vec mean[kVectors] = {load(delta + i), load(delta + i + kLanes)};
#pragma GCC unroll 8
    for (int r = 0; r < kR; r += 2) {
      Vec packed[2] = {};
#pragma GCC unroll 2
      for (int half = 0; half < 2 && r + half < kR; ++half) {
        const int row = r + half;
        const uint32_t seen = kMasked ? visible(j + row - i) : ~0u;
        Vec weight[kVectors], dscore[kVectors];
#pragma GCC unroll 8
        for (int n = 0; n < kVectors; ++n) {
          const __mmask16 lanes = seen >> (n * kLanes);
          weight[n] = exp2_for_bf16(score[row][n] * factor - shift[n]);
          if (kMasked) weight[n] = (Vec)_mm512_maskz_mov_ps(lanes, (__m512)weight[n]);
          dscore[n] = weight[n] * (dweight[row][n] - mean[n]);
          if (kMasked) dscore[n] = (Vec)_mm512_maskz_mov_ps(lanes, (__m512)dscore[n]);
        }
        store(weights + ((j + row) * width + i) / 2, narrow_to_pairs(weight[0], weight[1]));
        packed[half] = narrow_to_pairs(dscore[0], dscore[1]);
        store(dscores + ((j + row) * width + i) / 2, packed[half]);
      }
      float* pairs = dscore_pairs + (j + r) / 2 * pair_stride + i;
      store(pairs, interleave<0>(packed[0], packed[1]));
      store(pairs + kLanes, interleave<1>(packed[0], packed[1]));
    }
  }

  // Bit l says whether query i + l sees key j, for `distance` = j - i.
  uint32_t visible(int64_t distance) const {
    const int64_t first = std::clamp<int64_t>(band.low + distance, 0, kScoreColumns);
    const int64_t end = std::clamp<int64_t>(band.high + distance + 1, first, kScoreColumns);
    return static_cast<uint32_t>((uint64_t{1} << end) - (uint64_t{1} << first));
  }

  template <int kR>
  void clear(int64_t j, int64_t i) const {
    for (int r = 0; r < kR; ++r) {
      store(weights + ((j + r) * width + i) / 2, Vec{});
      store(dscores + ((j + r) * width + i) / 2, Vec{});
      for (int n = 0; n < kVectors; ++n) store(dscore_pairs + (j + r) / 2 * pair_stride + i + n * kLanes, Vec{});
    }
  }
};

}  // namespace attn
#endif

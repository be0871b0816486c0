// Products of fp32 tiles, the work of tiled-cpu: C = A B, C = C + A B, or C = alpha C + A B.
#pragma once

#include <cstdint>

#include "../band.h"

namespace attn {

// Element (i, j) of A lies at data[i * row + j * column]; one of the two strides is 1.
struct Factor {
  const float* data;
  int64_t row, column;
};

enum class Into { kSet, kAdd, kRescale };

// C[m, n] from A[m, k] and B[k, n]. n is a multiple of kLanes, rows of B and C are ldb and ldc floats apart.
// With kRescale row i of C is multiplied by alpha[i] before the product is added.
void matmul(Into into, int64_t m, int64_t n, int64_t k, Factor a, const float* b, int64_t ldb, float* c, int64_t ldc,
            const float* alpha = nullptr);

// Whether this CPU multiplies pairs of bf16 numbers (AVX512-BF16), at twice the rate of fp32.
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// C = A B where each 32-bit element of A and B is a pair of bf16 numbers, multiplied number by number and summed up
// in fp32; k counts pairs. The products are exact, so this gives what the fp32 product of the widened numbers gives,
// up to the order of the additions. Only where kHasPairs.
void matmul_pairs(int64_t m, int64_t n, int64_t k, Factor a, const float* b, int64_t ldb, float* c, int64_t ldc);

// Columns of a right factor that is packed in strips: strip s holds its rows one after another, [k, kStrip], and starts
// k * kStrip elements after the strip before.
constexpr int64_t kStrip = 64;

// C = C + A B for pairs as above, B packed in strips. Column p of A, counted in numbers, is visible to its row i as the
// band says; what is hidden is 0, and most of it is skipped. Only where kHasPairs.
void add_pairs(int64_t m, int64_t n, int64_t k, Factor a, Band band, const float* b, float* c, int64_t ldc);

}  // namespace attn
